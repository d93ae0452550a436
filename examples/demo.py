"""What `make demo` shows: the small model inside the package, on problems it has never seen.

    python examples/demo.py [SEED] [--pace SECONDS]

The seed picks the problems; a new one each time. At a terminal, each step is shown for the pace at
least, or all would be over in a blink; 0 shows how quick it is.

Each line is the likeliest canvas of a step. Kept: samples that stay for the next step; nats: doubt.
"""

import argparse
import os
import random
import shutil
import sys

# Threads that spin while they wait are slow on a busy machine; to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import diffusiongemma as dg
from diffusiongemma.cli.watching import PACE, Pace, seconds
from diffusiongemma.core.device import settle_threads
from diffusiongemma.evals.task import Problem, problems
from diffusiongemma.evals.tasks import TASKS
from diffusiongemma.model.count import parameters

COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
DIM, GREEN, RED, BOLD, PLAIN = (f"\x1b[{n}m" if COLOUR else "" for n in (2, 32, 31, 1, 0))
UNSURE = 0.5  # nats


def shown(gemma: dg.Gemma, event: dg.Refined) -> str:
    """The most likely canvas on one line, unsure positions dimmed."""
    assert gemma.chat is not None
    letters = []
    for token, entropy in zip(event.best, event.entropy, strict=True):
        letter = gemma.chat.tokenizer.decode([token])
        letter = letter if len(letter) == 1 and letter.isprintable() else "·"
        letters.append(f"{DIM}{letter}{PLAIN}" if entropy > UNSURE else letter)
    return "".join(letters)


def watch(gemma: dg.Gemma, problem: Problem, seed: int, pace: Pace) -> dg.Reply:
    """Ask, and show every step."""
    print(f"\n{BOLD}> {problem.prompt}{PLAIN}")
    for event in gemma.stream(problem.prompt, seed=seed):
        match event:
            case dg.Refined():
                pace.wait()
                unsure, kept = sum(event.entropy) / len(event.entropy), sum(event.accepted)
                print(f"  step {event.step:2}  {shown(gemma, event)}  "
                      f"{DIM}kept {kept:2}  {unsure:.2f} nats{PLAIN}")  # fmt: skip
            case dg.Finished(reply=reply):
                return reply
    raise AssertionError("a stream ends with Finished")


def main() -> None:
    """Draw a problem of each task, watch the answers, sum up."""
    asked = argparse.ArgumentParser(description="Watch the small model solve held-out problems.")
    asked.add_argument("seed", nargs="?", type=int, default=random.randrange(1000))
    usual = PACE if sys.stdout.isatty() else 0.0
    asked.add_argument("--pace", type=seconds, default=usual, help="seconds of a step, at least")
    given = asked.parse_args()
    if given.seed < 0:
        asked.error(f"a seed is a whole number from 0, got {given.seed}")
    seed, pace = given.seed, Pace(given.pace)
    gemma = dg.load()
    count = parameters(gemma.model.config)
    settle_threads(gemma.device.device, count)
    print(f"The small model inside the package: {count:,} parameters, {gemma.device.reason}.")
    print(f"Held-out problems, drawn with seed {seed}. Each line is the likeliest canvas of a")
    print("step; kept: samples that stay for the next one; nats: the mean doubt of a position.")
    right = forwards = tokens = 0
    spent = 0.0
    for task in TASKS.values():
        problem = next(problems(task, seed, held=True))
        reply = watch(gemma, problem, seed, pace)
        stats, good = reply.stats, task.right(problem, reply.text)
        mark = f"{GREEN}right{PLAIN}" if good else f"{RED}wrong{PLAIN}, it is {problem.answer}"
        print(f"  {BOLD}{reply.text}{PLAIN}   {mark}")
        speed = f"{stats.tokens_per_forward:.1f} tokens per forward, {stats.tokens_per_second:.0f}"
        print(f"  {DIM}{sum(stats.steps)} steps, {speed} tokens/s{PLAIN}")
        right += good
        forwards += sum(stats.steps) + len(stats.steps) - 1
        tokens += stats.new_tokens
        spent += stats.seconds
    speed = f"{tokens / forwards:.1f} tokens per forward, {tokens / spent:.0f} tokens/s"
    print(f"\n{right} of {len(TASKS)} right, {speed}; over 2,000 problems of each task:")
    print(gemma.folder / "README.md")
    how = (
        ""
        if shutil.which("diffusiongemma")
        else f". {os.path.relpath(sys.prefix)}/bin/activate && "
    )
    print(f"\nGo on:  {how}diffusiongemma chat")


if __name__ == "__main__":
    main()
