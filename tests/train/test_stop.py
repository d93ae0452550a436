"""Told to end at any moment, a run ends between two steps, and goes on as if nothing had been.

Signals are raised at given points of a step, and at given lines of the sources, so nothing here
depends on how fast the machine is.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import diffusiongemma
import signalled_runs
from cli_help import ENVIRONMENT
from diffusiongemma.core import atomic
from diffusiongemma.train import resume
from diffusiongemma.train.optim import Average
from diffusiongemma.train.resume import checkpoints
from diffusiongemma.train.stop import Stop
from train_run import log, names, run
from train_toy import CONFIG, source, toy

FEW = dataclasses.replace(CONFIG, steps=4, batch=2, save_every=2)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As an interactive shell starts a process; a background one ignores Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in usual.items():
        assert signal.getsignal(number) is handler, "the caller's handlers are not back"
        signal.signal(number, before[number])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list]:
    """The unbroken run: its weights and its log."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, FEW), log(folder)


def _ended(number: int) -> Any:
    if number == signal.SIGINT:
        return pytest.raises(KeyboardInterrupt)
    return pytest.raises(SystemExit, match=str(128 + number))


def _at_step(step: int, act: Callable[[], object]) -> Callable[..., None]:
    """A hook of any kind that acts the n-th time that it is called."""
    calls = 0

    def hook(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            act()

    return hook


@contextmanager
def _hooked(point: str, hook: Callable[..., None], patch: pytest.MonkeyPatch) -> Iterator[dict]:
    """Call a hook at a point of every step; yields options for the run."""
    model = toy()
    options: dict[str, Any] = {"model": model}
    handles = []
    match point:
        case "source":
            options["source"] = lambda n: (hook() if n % FEW.batch == 0 else None, source(n))[1]
        case "forward":
            handles.append(model.norm.register_forward_pre_hook(hook))
        case "backward":
            handles.append(model.norm.weight.register_hook(hook))
        case "before the weights change":
            handles.append(register_optimizer_step_pre_hook(hook))
        case "after the weights changed":
            handles.append(register_optimizer_step_post_hook(hook))
        case "average":
            real = Average.update
            patch.setattr(Average, "update", lambda *a: (real(*a), hook())[0])
        case "report":
            options["report"] = hook
        case "sample":
            options["sample"] = hook
        case "swap":
            real_swap = Average.swap
            patch.setattr(Average, "swap", lambda *a: (hook(), real_swap(*a))[1])
        case "save":
            real_save = resume.save_file
            patch.setattr(resume, "save_file", lambda *a: (hook(), real_save(*a))[1])
    yield options
    for handle in handles:
        handle.remove()


SAVING = ("sample", "swap", "save")  # only every other step has these
POINTS = (
    *("source", "forward", "backward", "before the weights change", "after the weights changed"),
    *("average", "report", *SAVING),
)


@pytest.mark.parametrize("point", POINTS)
def test_the_step_is_finished_and_saved(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple
) -> None:
    number = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP][len(point) % 3]
    call = 1 if point in SAVING else 3
    sent = _at_step(call, lambda: signal.raise_signal(number))
    with _hooked(point, sent, monkeypatch) as options, _ended(number):
        run(tmp_path, FEW, **({"sample": lambda: None} | options))
    step = 2 if point in SAVING or point == "forward" else 3
    assert checkpoints(tmp_path)[-1].name == f"step-{step:08d}"
    assert not list(tmp_path.glob(".*.partial"))
    assert torch.equal(run(tmp_path, FEW), whole[0]) and log(tmp_path) == whole[1]


@pytest.mark.parametrize("point", POINTS)
def test_a_second_one_leaves_at_once_and_saves_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    sent = _at_step(1 if point in SAVING else 3, twice)
    with _hooked(point, sent, monkeypatch) as options, _ended(signal.SIGTERM):
        run(tmp_path, FEW, **({"sample": lambda: None} | options))
    saved = [] if point in ("save", "forward") else ["step-00000002"]
    assert [path.name for path in checkpoints(tmp_path)] == saved
    assert not list(tmp_path.glob(".*.partial"))
    assert torch.equal(run(tmp_path, FEW), whole[0]) and log(tmp_path) == whole[1]


ROOM = Path(diffusiongemma.__file__).parent
TRACED = {str(path) for path in (ROOM / "train").glob("*.py")} | {atomic.__file__}


@contextmanager
def _each_line(act: Callable[[int], object]) -> Iterator[None]:
    """Act before each line of training's own sources, with the line's number in the run."""
    lines = 0

    def line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            act(lines)
        return line

    def call(frame: FrameType, event: str, arg: object) -> Any:
        return line if frame.f_code.co_filename in TRACED else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("times", [1, 2], ids=["one signal", "two at once"])
def test_at_any_line(times: int, tmp_path: Path, whole: tuple) -> None:
    seen: list[int] = []
    shown = {"sample": lambda: None}
    with _each_line(seen.append):
        run(tmp_path / "counted", FEW, **shown)
    dice = random.Random(times)
    for moment in dice.sample(range(1, seen[-1] + 1), 12):
        folder = tmp_path / str(moment)

        def act(line: int, moment: int = moment) -> None:
            for _ in range(times if line == moment else 0):
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt), _each_line(act):
            run(folder, FEW, **shown)
        found = run(folder, FEW, **shown)
        assert torch.equal(found, whole[0]) and log(folder) == whole[1], moment
        assert len(names(folder)) == 3 and names(folder)[-1] == "step-00000004", moment


def test_what_the_caller_ignores_stays_ignored(tmp_path: Path, whole: tuple) -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = _at_step(2, lambda: signal.raise_signal(signal.SIGHUP))
        assert torch.equal(run(tmp_path, FEW, report=hang_up), whole[0])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_in_a_thread_it_trains_without(tmp_path: Path, whole: tuple) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path, FEW)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], whole[0])


def test_an_error_is_not_hidden_by_a_signal(tmp_path: Path) -> None:
    class WrongError(Exception):
        pass

    def fail(line: dict) -> None:
        signal.raise_signal(signal.SIGINT)
        raise WrongError

    with pytest.raises(WrongError):
        run(tmp_path, FEW, report=fail)


def test_a_signal_at_the_very_end_is_not_lost() -> None:
    stop = Stop()
    with pytest.raises(SystemExit, match="143"), stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked


def test_what_a_reader_sees_and_the_system_gets(tmp_path: Path) -> None:
    script = (
        "import sys, signal, train_run, train_toy; from pathlib import Path\n"
        "def wait(line):\n"
        "    if line['step'] == 3: print('waiting', flush=True), sys.stdin.readline()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "train_run.run(Path(sys.argv[1]), train_toy.CONFIG, report=wait)"
    )
    tests = str(Path(__file__).parents[1])
    env = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{tests}"}
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)):
        folder = tmp_path / number.name
        process = subprocess.Popen(
            [sys.executable, "-c", script, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
        )  # fmt: skip
        with process:
            assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
            process.send_signal(number)
            _, said = process.communicate(b"\n")
        assert process.returncode == code
        assert f"{number.name}: training ends after this step".encode() in said
        assert names(folder) == ["metrics.jsonl", "step-00000003"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="breaks its children")
def test_at_random_moments(tmp_path: Path) -> None:
    """A few of what `tests/signalled_runs.py` does by hand, with other moments each time."""
    env = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seed = random.randrange(1 << 30)
    words = [sys.executable, signalled_runs.__file__, tmp_path, "--count", "4", "--seed", str(seed)]
    found = subprocess.run(list(map(str, words)), capture_output=True, check=True, env=env).stdout
    runs = [json.loads(line) for line in found.splitlines()]
    assert sum(len(one["came"]) for one in runs) >= 4
    assert all(one["same"] for one in runs), (seed, runs)
