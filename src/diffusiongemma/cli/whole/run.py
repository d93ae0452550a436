"""The whole-size bench's parts: cases one after the other, each written down when it is done.

A case that the folder holds is not measured again, so that a run that was cut off goes on where it
ended. Nothing begins that the time that is left may not hold.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.cli.output import as_json, give, say
from diffusiongemma.cli.whole import account, answers, check, parts, rival
from diffusiongemma.cli.whole.card import card
from diffusiongemma.cli.whole.clock import Clock, data_sheet, limits
from diffusiongemma.cli.whole.network import SIZES, TOY, made, skew
from diffusiongemma.core.atomic import lock
from diffusiongemma.core.device import choose
from diffusiongemma.core.errors import OptionError
from diffusiongemma.kernels.ops import TRITON
from diffusiongemma.model.model import DiffusionGemma

LIMIT = 7 * 60.0  # seconds after which no further case begins
STEPS, PROMPT, CANVASES = 16, 1024, 4
_SHOWN = 2000  # letters of a traceback that are printed
# The op whose kernel most of a part's time is spent in; products are torch's library's everywhere.
_OPS = {
    "experts": "experts",
    "attention": "attention",
    "statistics": "readout",
    "acceptance": "refine",
    "norms, rotations, gaps": "norm_rope",
}
Case = tuple[str, Callable[[], dict[str, Any]]]


def run(args: argparse.Namespace) -> int:
    """Measure one part and print a card for each case, or its figures as one line of JSON.

    Raises:
        OptionError: a size that wants a GPU, or a flag of the other bench.
    """
    _refuse(args)
    config, part = SIZES[args.size], "bf16" if args.part is None else args.part
    device = choose(args.device, None, "bfloat16").device
    if device.type != "cuda" and config is not TOY:
        raise OptionError("--size 26b needs a GPU, and none was found; --size toy rehearses it")
    with _alone(args.out and Path(args.out), f"{args.size}-{part}.jsonl") as file:
        bench = Bench(args.size, part, device, file, alone=args.alone, data=args.json)
        for name, work in bench.cases():
            bench.case(name, work)
    return 1 if bench.failed else 0


def _refuse(args: argparse.Namespace) -> None:
    """Options of the bench on a CPU have no meaning here."""
    others = ("model", "context", "batch", "dtype", "rounds", "threads", "steps", "canvases")
    given = [name for name in others if getattr(args, name) not in (None, [])]
    given += ["quick"] if args.quick else []
    if given:
        raise OptionError(f"--{given[0]} has no meaning with --size; omit it")


@contextmanager
def _alone(folder: Path | None, name: str) -> Iterator[Path | None]:
    """The file for figures, which nobody else may write at the same time.

    Raises:
        OptionError: the folder cannot be written, or another bench is writing there.
    """
    if folder is None:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a", encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise OptionError(f"--out {folder} cannot be written: {why}; name another") from error
    with file:
        if lock(file.fileno()) is False:
            raise OptionError(
                f"another bench is writing to {folder / name}; wait for it, or name another folder"
            )
        yield folder / name


class Bench:
    """One part on one device.

    Attributes:
        failed: names of the cases that raised.
    """

    def __init__(
        self,
        size: str,
        part: str,
        device: torch.device,
        file: Path | None,
        *,
        alone: bool,
        data: bool,
    ) -> None:
        self.size, self.part, self.device, self.alone = size, part, device, alone
        self._data = data
        self.config, self.clock = SIZES[size], Clock(device)
        self.begun = time.perf_counter()
        self.file = file
        self.done = self._held()
        self.failed: list[str] = []
        self.prompt = PROMPT if device.type == "cuda" else 100
        self._model: tuple[str, DiffusionGemma] | None = None

    def case(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Measure one case, unless it is done or there is no time for it."""
        if name in self.done:
            say(f"{name}: done before", aside=True)
            return
        spent = time.perf_counter() - self.begun
        if spent > LIMIT:
            say(f"{name}: left for another run, {spent:.0f} s are spent", aside=True)
            return
        say(f"{name} ({spent:.0f} s)", aside=True)
        line: dict[str, Any] = {"case": name, "size": self.size, "part": self.part}
        try:
            line |= work()
        except Exception as error:  # one case must not cost the others
            self.failed.append(name)
            line["error"] = f"{type(error).__name__}: {error}"
            self._complain(name)
        line["seconds_spent"] = time.perf_counter() - self.begun - spent
        self._keep(line)

    def cases(self) -> Iterator[Case]:
        """The part's cases, dear ones last."""
        yield "limits", lambda: self._machine() | limits(self.clock)
        if self.part == "check":
            yield from check.checks(self.device, self.size, alone=self.alone)
            return
        for format in ("fp8",) if self.part == "fp8" else ("bfloat16",):
            for routing in ("even",) if self.part == "batch" else ("even", "skewed"):
                for rows in (1, 2, 4, 8) if self.part == "batch" else (1,):
                    yield from self._of(format, routing, rows)

    def _of(self, format: str, routing: str, rows: int) -> Iterator[Case]:
        name = f"{format}, {routing} routing, batch {rows}"
        yield f"{name}: step", lambda: self._step(format, routing, rows)
        yield f"{name}: answer", lambda: self._answer(format, routing, rows, self.prompt)
        if self.part == "bf16" and routing == "even":
            far = 4 * self.prompt
            yield (
                f"{name}: answer after {far} tokens",
                lambda: self._answer(format, routing, rows, far),
            )
        if self.part == "bf16" and not self.alone:
            yield f"{name}: transformers", lambda: self._rival(routing, False)
            if routing == "even":
                yield f"{name}: transformers compiled", lambda: self._rival(routing, True)

    def model(self, format: str, routing: str) -> DiffusionGemma:
        """The network, one at a time: two would not fit."""
        wanted = f"{format} {routing}"
        if self._model is None or self._model[0] != wanted:
            self._model = None
            self.clock.release()
            model = made(self.config, self.device, torch.bfloat16)
            if routing == "skewed":
                skew(model)
            if format == "fp8":
                from diffusiongemma.quant.apply import quantise

                quantise(model)
            self._model = (wanted, model)
        return self._model[1]

    def _step(self, format: str, routing: str, rows: int) -> dict[str, Any]:
        model, room = self.model(format, routing), 2 * self.config.canvas_length
        steps = parts.opened(model, rows, self.prompt, room, STEPS)
        found = parts.measured(model, steps, self.clock)
        distinct = found["experts_hit"]
        small = {"wide": 1, "expert": 1} if format == "fp8" else {}
        work = account.step(self.config, self.prompt, rows, distinct, **small)
        read, choice = sum(one.bytes for one in work.values()), model.choice
        kernels = {name: one.backend for name, one in choice.ops.facts.items()}
        kernels["refine"] = "Triton" if choice.ops.name == TRITON else "reference"
        plain = [part for part, op in _OPS.items() if kernels[op] == "reference"]
        fallback = sum(found["part_seconds"][part] for part in plain)
        found |= {
            "rows": rows,
            "context": self.prompt,
            "bytes_per_second": read / found["step_seconds"],
            "kernels": kernels,
            "fallback_share": fallback / found["step_seconds"],
        }
        return found | self._floors(work, found["step_seconds"], eight=bool(small))

    def _floors(
        self, work: dict[str, account.Work], seconds: float, *, eight: bool
    ) -> dict[str, Any]:
        """The least time of each part, by measured limits, or else by the data sheet."""
        known = self.done.get("limits", {})
        source = "measured"
        if "read_bytes_per_second" not in known:  # its case failed; a step must not be lost with it
            known, source = data_sheet(self.device), "the data sheet"
        if not known:
            return {"limits": "nothing", "floor_part_seconds": {}}
        rate = known["bfloat16_flops_per_second"]
        small = ("experts", "dense and projections") if eight else ()
        floors = {
            name: one.seconds(
                known["read_bytes_per_second"],
                known.get("fp8_flops_per_second", rate) if name in small else rate,
            )
            for name, one in work.items()
        }
        read = sum(one.bytes for one in work.values())
        return {
            "limits": source,
            "floor_part_seconds": floors,
            "floor_seconds": sum(floors.values()),
            "over_floor": seconds / sum(floors.values()),
            "read_share": read / seconds / known["read_bytes_per_second"],
        }

    def _answer(self, format: str, routing: str, rows: int, context: int) -> dict[str, Any]:
        model = self.model(format, routing)
        asked = {"rows": rows, "context": context, "canvases": CANVASES, "steps": STEPS}
        return asked | answers.measured(model, self.clock, **asked)

    def _rival(self, routing: str, compile: bool) -> dict[str, Any]:
        try:
            theirs = rival.sharing(self.model("bfloat16", routing))
            theirs = rival.compiled(theirs) if compile else theirs
            seconds = rival.step_seconds(theirs, 1, self.prompt, STEPS, self.clock)
            return {"step_seconds": seconds, "kernels": theirs.kernels}
        finally:
            theirs = None
            self.clock.release()

    def _complain(self, name: str) -> None:
        """The error that is being handled: whole into the folder, its end to whoever watches."""
        told = traceback.format_exc()
        end = told if len(told) <= _SHOWN else f"...{told[-_SHOWN:]}"
        say(end, aside=True)
        if self.file is not None:
            with self.file.with_suffix(".errors").open("a", encoding="utf-8") as file:
                file.write(f"== {name}\n{told}\n")

    def _machine(self) -> dict[str, Any]:
        from diffusiongemma.cli import machine
        from diffusiongemma.cli.bench import commit_of

        about = machine.software() | {"gpus": machine.gpus()}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"machine": about, "commit": commit_of(), "when": when}

    def _held(self) -> dict[str, dict[str, Any]]:
        if self.file is None or not self.file.is_file():
            return {}
        lines = [_read(line) for line in self.file.read_text("utf-8").splitlines()]
        return {line["case"]: line for line in lines if line and "error" not in line}

    def _keep(self, line: dict[str, Any]) -> None:
        self.done[line["case"]] = line
        if self._data:
            give(as_json(line))
        else:
            say(card(line))
        if self.file is None:
            return
        with self.file.open("a+b") as file:
            # A run that was cut off may have left half a line.
            file.seek(max(0, file.seek(0, 2) - 1))
            start = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(start + json.dumps(line).encode() + b"\n")
        with self.file.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write(card(line) + "\n")


def _read(line: str) -> dict[str, Any] | None:
    """A case from its line; None for half a line, which a run that was cut off has left."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "case" in found else None
