"""A training run that is told to end at random moments, by random signals, and then goes on.

    python tests/signalled_runs.py FOLDER [--count 60] [--seed 0]

Whenever one comes, or two, the run that goes on must come out as the unbroken one: weights,
averages, log and last checkpoint. Moments are drawn from the time that the unbroken run takes here,
so they lie in other places on another machine; what must come out does not depend on where. It is a
program of its own, on one thread, so that it can fork.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from train_run import log, names, run
from train_toy import CONFIG

MANY = dataclasses.replace(CONFIG, steps=24, batch=2, save_every=4)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
CODES = {0, *(128 + number for number in SIGNALS)}


def begin(work: Callable[[], object]) -> int:
    """Work in a child, whose handlers are those of a shell's."""
    child = os.fork()
    if child:
        return child
    for number in SIGNALS[1:3]:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        work()
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child, as a shell has it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 128 - code if code < 0 else code
    assert code in CODES, f"the run failed with {code}"
    return code


def finish(folder: Path, said: Path) -> str:
    """Train to the end, and tell what came out."""

    def work() -> None:
        weights = run(folder, MANY).numpy().tobytes().hex()
        found = {"weights": weights, "log": log(folder), "last": names(folder)[-1]}
        assert len(names(folder)) == 3, "two checkpoints and the log"
        said.write_text(json.dumps(found))

    said.unlink(missing_ok=True)
    assert ended(begin(work)) == 0, "the run did not end"
    return said.read_text()


def main() -> None:
    """Print, for each broken run, the signals that came and whether it came out right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.place.mkdir(parents=True, exist_ok=True)
    folder, said = given.place / "run", given.place / "said"
    run(given.place / "warm", MANY)  # what a first step imports, the children have
    start = time.monotonic()
    unbroken = finish(given.place / "unbroken", said)
    usual, dice, left = time.monotonic() - start, random.Random(given.seed), given.count
    while left:
        shutil.rmtree(folder, ignore_errors=True)
        came = []
        for _ in range(min(left, dice.choice((1, 1, 2, 3)))):
            sent = dice.choices(SIGNALS, k=dice.choice((1, 1, 1, 2)))  # two at once, at times
            moment = dice.random() * usual
            child = begin(lambda: run(folder, MANY))
            time.sleep(moment)
            for number in sent:
                os.kill(child, number)
                time.sleep(dice.random() * 0.01)
            code = ended(child)
            if code == 0:  # the run was over before
                break
            steps = sorted(path.name for path in folder.glob("step-*"))  # it may not be there yet
            signals = [number.name for number in sent]
            came.append({"signals": signals, "at": moment, "code": code, "left": steps})
        left -= len(came)
        if came:
            same = finish(folder, said) == unbroken
            print(json.dumps({"came": came, "same": same}), flush=True)


if __name__ == "__main__":
    main()
