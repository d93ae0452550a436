"""The verb `bench`: this package and transformers side by side on the CPU.

Knows the cases and how their figures are laid out; what is measured and how, `benching` knows.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusiongemma.cli.options import Parser, take
from diffusiongemma.cli.output import as_json, check_open, give, say
from diffusiongemma.cli.screen import Screen
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.core.letters import brief

USAGE = """\
diffusiongemma bench [-m FOLDER] [--quick] [options]
       diffusiongemma bench --size 26b [--part check|bf16|fp8|batch] [--out PATH]"""
ABOUT = """\
Time denoising steps and whole answers on the CPU, beside transformers if it is installed: the same
weights, format and number of steps, in turns, in one process. The floor is a step's multiplications
over the rate at which this machine multiplies matrices, measured in the same run."""
DTYPES = ("float32", "bfloat16")
QUICK = {"model": ["shipped"], "context": [64], "batch": [1], "dtype": ["bfloat16"], "rounds": 3}
_STEPS, _CANVASES = 8, 2
_HEAD = (
    "model", "dtype", "batch", "context", "ours ms/step", "spread", "transformers", "spread",
    "faster", "over floor", "ours tok/s", "theirs", "faster", "working MB", "theirs",
)  # fmt: skip


def parser() -> Parser:
    """The flags of this verb."""
    stray = "for several values repeat the flag, as in --batch 1 --batch {word}"
    made = Parser("bench", USAGE, ABOUT, stray=stray)
    cases = made.add_argument_group("cases", "All combinations of what is given.")
    take(cases, "model", many=True, more=", or shipped, or mid", usual="shipped, mid")
    take(cases, "context", many=True, usual="64, 1024")
    take(cases, "batch", many=True, usual="1, 8")
    take(cases, "dtype", many=True, usual="float32, bfloat16")
    how = made.add_argument_group("how")
    take(how, "steps", usual=str(_STEPS))
    take(how, "canvases", usual=str(_CANVASES))
    take(how, "rounds", usual="7")
    take(how, "threads", usual="torch's own choice")
    take(how, "alone")
    take(how, "quick")
    take(how, "json")
    take(how, "out", more=": all samples' figures as JSON; with --size a folder, of cases")
    whole_size = made.add_argument_group("whole size, with random weights and without a checkpoint")
    take(whole_size, "size", choices=("26b", "toy"), more=" (26b needs a GPU, toy rehearses it)")
    take(whole_size, "part", choices=("check", "bf16", "fp8", "batch"), usual="bf16")
    take(whole_size, "device", usual="cuda if there is one")
    return made


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    check_open()
    if args.size is not None:
        from diffusiongemma.cli.whole import run as whole_run

        return whole_run.run(args)
    for name in ("part", "device"):
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} needs --size; name one, or omit it")
    if args.out is not None:
        check_writable(args.out)
    import torch

    from diffusiongemma.cli.benching import floor, theirs

    wanted = _wanted(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    alone = args.alone or not theirs.found()
    if alone and not args.alone:
        say(
            "transformers is not installed, so this package is measured alone; for both: "
            "pip install transformers==5.23.0",
            aside=True,
        )
    rates = {name: floor.gemm_rate(getattr(torch, name)) for name in wanted["dtype"]}
    report = _machine(rates)
    if not args.json:
        say(_head(report))
    for name, dtype in itertools.product(wanted["model"], wanted["dtype"]):
        for case in _network(name, dtype, rates[dtype], wanted, alone):
            report["cases"].append(case)
            if not args.json:
                say(_line(case))
    if args.json:
        give(as_json(report, indent=1))
    if args.out is not None:
        write_whole(args.out, json.dumps(report, indent=1) + "\n")
    return 0


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    usual = {"model": ["shipped", "mid"], "context": [64, 1024], "batch": [1, 8], "rounds": 7}
    usual |= {"dtype": list(DTYPES), "steps": _STEPS, "canvases": _CANVASES}
    usual |= QUICK if args.quick else {}
    given = {key: getattr(args, key) for key in usual}
    wanted = {key: usual[key] if given[key] in (None, []) else given[key] for key in usual}
    for dtype in wanted["dtype"]:
        if dtype not in DTYPES:
            raise OptionError(f"--dtype must be {' or '.join(DTYPES)}, got {brief(dtype)}")
    return wanted


def _network(
    name: str, dtype: str, rate: float, wanted: dict[str, Any], alone: bool
) -> Iterator[dict[str, Any]]:
    """All contexts and batches of one network in one format."""
    import torch

    from diffusiongemma.cli.benching import floor, measure, models
    from diffusiongemma.cli.benching.ours import Ours
    from diffusiongemma.cli.benching.theirs import Theirs

    kind, screen = getattr(torch, dtype), Screen()
    steps, canvases = wanted["steps"], wanted["canvases"]
    with models.folder_of(name, kind) as (folder, title), torch.no_grad():
        ours = Ours(models.opened(folder, kind))
        sides: list[measure.Side] = [ours]
        if not alone:
            sides.append(Theirs.opened(folder, kind))
        config = ours.model.config
        most = config.max_position_embeddings - max(1, canvases) * config.canvas_length
        for batch, context in itertools.product(wanted["batch"], wanted["context"]):
            tokens = min(context, most)
            what = f"{title}, {dtype}, batch {batch}, context {context}"
            seen = measure.compare(
                sides,
                models.prompts(config, batch, tokens),
                steps=steps,
                canvases=canvases,
                rounds=wanted["rounds"],
                tell=lambda word, n=what: screen.status(f"{n}, {word}"),
            )
            screen.clear()
            flops = floor.step_flops(config, tokens, batch)
            case = {"model": title, "dtype": dtype, "batch": batch, "context": tokens}
            case |= {"step_flops": flops, "floor_seconds": flops / rate, "steps": steps}
            case["tokens"] = batch * canvases * config.canvas_length
            case |= {side: samples.report() for side, samples in seen.items()}
            yield case


def _head(report: dict[str, Any]) -> str:
    """What the table belongs to, and its first lines."""
    rates = report["gemm_flops_per_second"].items()
    return (
        f"{report['processor']}, {report['threads']} thread(s), torch {report['torch']}\n"
        f"{'; '.join(f'{name}: {rate / 1e9:.0f} GFLOP/s' for name, rate in rates)}\n\n"
        f"| {' | '.join(_HEAD)} |\n|{'---|' * 3}{'--:|' * (len(_HEAD) - 3)}"
    )


def _line(case: dict[str, Any]) -> str:
    """One row of the table: medians, and the spread as the extremes' share of them."""
    sides = [case.get(name, {}) for name in ("ours", "transformers")]
    step = [side.get("step_seconds", {}) for side in sides]
    middle = [one.get("median") for one in step]
    answer = [side.get("answer_seconds", {}).get("median") for side in sides]
    speed = [seconds and case["tokens"] / seconds for seconds in answer]
    memory = [side.get("working_bytes") for side in sides]
    cells = [case["model"], case["dtype"], str(case["batch"]), str(case["context"])]
    for one in step:
        cells += [f"{one['median'] * 1e3:.2f}", _spread(one)] if one else ["", ""]
    cells.append(f"{middle[1] / middle[0]:.2f}x" if middle[1] else "")
    cells.append(f"{middle[0] / case['floor_seconds']:.2f}")
    cells += [f"{one:,.0f}" if one else "" for one in speed]
    cells.append(f"{speed[0] / speed[1]:.2f}x" if speed[0] and speed[1] else "")
    cells += ["" if one is None else f"{one / 1e6:,.0f}" for one in memory]
    return f"| {' | '.join(cells)} |"


def _spread(seen: dict[str, float]) -> str:
    low, high = (100 * (seen[edge] / seen["median"] - 1) for edge in ("min", "max"))
    return f"{low:+.0f} {high:+.0f} %"


def _machine(rates: dict[str, float]) -> dict[str, Any]:
    """What the figures belong to."""
    import importlib.metadata

    import torch

    from diffusiongemma.cli import machine

    try:
        rival = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        rival = None
    return {
        "command": " ".join(["diffusiongemma", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit_of(),
        "processor": machine.processor()["name"],
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": rival,
        "threads": torch.get_num_threads(),
        "gemm_flops_per_second": rates,
        "cases": [],
    }


def commit_of() -> str | None:
    """Of the working tree that this file lies in, marked if it has changes; None outside one."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
