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
from pathlib import Path
from typing import Any

from diffusiongemma.cli.options import Parser, whole
from diffusiongemma.cli.output import say
from diffusiongemma.cli.screen import Screen
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.files import check_writable, write_whole

USAGE = """\
diffusiongemma bench [--model shipped|mid|FOLDER] [--quick] [--json FILE]
       diffusiongemma bench --size 26b [--part check|bf16|fp8|batch] [--out FOLDER]"""
ABOUT = """\
Time denoising steps and whole answers on the CPU, beside transformers if it is installed: the same
weights, format and number of steps, in turns, in one process. The floor is a step's multiplications
over the rate at which this machine multiplies matrices, measured in the same run."""
DTYPES = ("float32", "bfloat16")
QUICK = {"model": ["shipped"], "context": [64], "batch": [1], "dtype": ["bfloat16"], "rounds": 3}
_HEAD = (
    "model", "dtype", "batch", "context", "ours ms/step", "spread", "transformers", "spread",
    "faster", "over floor", "ours tok/s", "theirs", "faster", "working MB", "theirs",
)  # fmt: skip


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT)
    cases = made.add_argument_group("cases", "all combinations; each may be given several values")
    cases.add_argument("-m", "--model", nargs="+", metavar="MODEL", help="shipped, mid, or folders")
    cases.add_argument("--context", nargs="+", type=whole, metavar="N", help="(64 1024)")
    cases.add_argument("--batch", nargs="+", type=whole, metavar="N", help="rows (1 8)")
    cases.add_argument("--dtype", nargs="+", metavar="NAME", help="(float32 bfloat16)")
    how = made.add_argument_group("how")
    how.add_argument("--steps", type=whole, default=8, metavar="N", help="of a canvas (8)")
    how.add_argument("--canvases", type=whole, default=2, metavar="N", help="of an answer (2)")
    how.add_argument("--rounds", type=whole, metavar="N", help="turns of each side (7)")
    how.add_argument("--threads", type=whole, metavar="N", help="of torch (its own choice)")
    how.add_argument("--alone", action="store_true", help="without transformers")
    how.add_argument("--quick", action="store_true", help="one small case")
    how.add_argument("--json", type=Path, metavar="FILE", help="write all samples' figures there")
    whole_size = made.add_argument_group("whole size, with random weights and without a checkpoint")
    whole_size.add_argument("--size", metavar="NAME", help="26b on a GPU, or toy, to rehearse")
    whole_size.add_argument("--part", metavar="NAME", help="check, bf16, fp8 or batch (bf16)")
    whole_size.add_argument("--out", type=Path, metavar="FOLDER", help="cases done stay done there")
    whole_size.add_argument("--device", metavar="NAME", help="(cuda if there is one)")
    return made


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    if args.size is not None:
        from diffusiongemma.cli.whole import run as whole_run

        return whole_run.run(args)
    for name in ("part", "out", "device"):
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} needs --size; name one, or omit it")
    if args.json is not None:  # before the work, which takes long
        args.json.parent.mkdir(parents=True, exist_ok=True)
        check_writable(args.json)
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
    say(f"{report['processor']}, {report['threads']} thread(s), torch {report['torch']}")
    say("; ".join(f"{name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()) + "\n")
    say(f"| {' | '.join(_HEAD)} |\n|{'---|' * 3}{'--:|' * (len(_HEAD) - 3)}")
    for name, dtype in itertools.product(wanted["model"], wanted["dtype"]):
        report["cases"] += _network(name, dtype, rates[dtype], wanted, args, alone)
    if args.json is not None:
        write_whole(args.json, json.dumps(report, indent=1) + "\n")
    return 0


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    usual = {"model": ["shipped", "mid"], "context": [64, 1024], "batch": [1, 8], "rounds": 7}
    usual |= {"dtype": list(DTYPES)} | (QUICK if args.quick else {})
    wanted = {key: usual[key] if (v := getattr(args, key)) is None else v for key in usual}
    numbers = {"rounds": [wanted["rounds"]], "steps": [args.steps], "threads": [args.threads or 1]}
    for key in ("context", "batch"):
        numbers[key] = wanted[key]
    for key, values in numbers.items():
        if min(values) < 1:
            raise OptionError(f"--{key} must be at least 1, got {min(values)}")
    if args.canvases < 0:
        raise OptionError(f"--canvases must be at least 0, got {args.canvases}")
    for dtype in wanted["dtype"]:
        if dtype not in DTYPES:
            raise OptionError(f"--dtype must be {' or '.join(DTYPES)}, got '{dtype}'")
    return wanted


def _network(
    name: str,
    dtype: str,
    rate: float,
    wanted: dict[str, Any],
    args: argparse.Namespace,
    alone: bool,
) -> list[dict[str, Any]]:
    """All contexts and batches of one network in one format."""
    import torch

    from diffusiongemma.cli.benching import floor, measure, models
    from diffusiongemma.cli.benching.ours import Ours
    from diffusiongemma.cli.benching.theirs import Theirs

    kind, cases, screen = getattr(torch, dtype), [], Screen()
    with models.folder_of(name, kind) as (folder, title), torch.no_grad():
        ours = Ours(models.opened(folder, kind))
        sides: list[measure.Side] = [ours]
        if not alone:
            sides.append(Theirs.opened(folder, kind))
        config = ours.model.config
        most = config.max_position_embeddings - max(1, args.canvases) * config.canvas_length
        for batch, context in itertools.product(wanted["batch"], wanted["context"]):
            tokens = min(context, most)
            ids_BT = models.prompts(config, batch, tokens)
            what = f"{title}, {dtype}, batch {batch}, context {context}"
            seen = measure.compare(
                sides,
                ids_BT,
                steps=args.steps,
                canvases=args.canvases,
                rounds=wanted["rounds"],
                tell=lambda word, n=what: screen.status(f"{n}, {word}"),
            )
            screen.clear()
            flops = floor.step_flops(config, tokens, batch)
            case = {"model": title, "dtype": dtype, "batch": batch, "context": tokens}
            case |= {"step_flops": flops, "floor_seconds": flops / rate, "steps": args.steps}
            case["tokens"] = batch * args.canvases * config.canvas_length
            case |= {side: samples.report() for side, samples in seen.items()}
            say(_line(case))
            cases.append(case)
    return cases


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
