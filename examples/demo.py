"""What `make demo` shows: the small model inside the package, on problems it has never seen.

    python examples/demo.py [SEED]        the seed picks the problems; a new one each time

Each line is the likeliest canvas of a step. Kept: samples that stay for the next step; nats: doubt.
"""

import os
import random
import sys

# Threads that spin while they wait are slow on a busy machine; to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import diffusiongemma as dg
from diffusiongemma.core.device import settle_threads
from diffusiongemma.evals.task import Problem, problems
from diffusiongemma.evals.tasks import TASKS

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


def watch(gemma: dg.Gemma, problem: Problem, seed: int) -> dg.Reply:
    """Ask, and show every step."""
    print(f"\n{BOLD}> {problem.prompt}{PLAIN}")
    for event in gemma.stream(problem.prompt, seed=seed):
        match event:
            case dg.Refined():
                unsure, kept = sum(event.entropy) / len(event.entropy), sum(event.accepted)
                print(f"  step {event.step:2}  {shown(gemma, event)}  "
                      f"{DIM}kept {kept:2}  {unsure:.2f} nats{PLAIN}")  # fmt: skip
            case dg.Finished(reply=reply):
                return reply
    raise AssertionError("a stream ends with Finished")


def main() -> None:
    """Draw a problem of each task, watch the answers, sum up."""
    given = sys.argv[1] if sys.argv[1:] else str(random.randrange(1000))
    if not given.isdecimal():
        sys.exit(f"the seed must be a whole number, got '{given}'; see the top of this file")
    seed = int(given)
    gemma = dg.load()
    count = sum(weight.numel() for weight in gemma.model.parameters())
    settle_threads(gemma.device.device, count)
    print(f"The small model inside the package: {count:,} parameters, {gemma.device.reason}.")
    print(f"Held-out problems, drawn with seed {seed}. Each line is the likeliest canvas of a")
    print("step; kept: samples that stay for the next one; nats: the mean doubt of a position.")
    right = forwards = tokens = 0
    seconds = 0.0
    for task in TASKS.values():
        problem = next(problems(task, seed, held=True))
        reply = watch(gemma, problem, seed)
        stats, good = reply.stats, task.right(problem, reply.text)
        mark = f"{GREEN}right{PLAIN}" if good else f"{RED}wrong{PLAIN}, it is {problem.answer}"
        print(f"  {BOLD}{reply.text}{PLAIN}   {mark}")
        pace = f"{stats.tokens_per_forward:.1f} tokens per forward, {stats.tokens_per_second:.0f}"
        print(f"  {DIM}{sum(stats.steps)} steps, {pace} tokens/s{PLAIN}")
        right += good
        forwards += sum(stats.steps) + len(stats.steps) - 1
        tokens += stats.new_tokens
        seconds += stats.seconds
    pace = f"{tokens / forwards:.1f} tokens per forward, {tokens / seconds:.0f} tokens/s"
    print(f"\n{right} of {len(TASKS)} right, {pace}; over 2,000 problems of each task:")
    print(gemma.folder / "README.md")


if __name__ == "__main__":
    main()
