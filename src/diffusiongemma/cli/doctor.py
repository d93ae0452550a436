"""The verb `doctor`: what this machine can run, and why; with -m, whether a checkpoint opens.

Knows how a report is laid out. Facts come from `machine` and `checkup`.
"""

import argparse
from typing import Any

from diffusiongemma.cli.options import Parser, add_model
from diffusiongemma.cli.output import as_json, give, say

USAGE = "diffusiongemma doctor [-m FOLDER] [--json]"
ABOUT = "Say what this machine can run and why; with -m, also whether a checkpoint opens."


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT)
    add_model(made)
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


def run(args: argparse.Namespace) -> int:
    """Report."""
    from diffusiongemma.cli import machine
    from diffusiongemma.core.device import choose
    from diffusiongemma.core.errors import OptionError

    if args.revision is not None and args.model is None:
        raise OptionError("--revision needs -m with a hub id; name one, or omit it")
    gpus = machine.gpus()
    report: dict[str, Any] = {
        "software": machine.software(),
        "processor": machine.processor(),
        "gpus": gpus,
        "released checkpoint": {"device and format": choose(None, None, "bfloat16").reason},
        "kernels": machine.backends(),
        f"fits {machine.RELEASED}": machine.fit(machine.RELEASED_BYTES, gpus),
        "chat templates": machine.templates(),
        "hub": machine.hub(),
    }
    problems = _checkpoint(report, args, gpus) if args.model is not None else []
    if args.json:
        give(as_json(report, indent=2))
    else:
        say(_text(report))
    return 2 if problems else 0


def _checkpoint(report: dict[str, Any], args: argparse.Namespace, gpus: Any) -> list[str]:
    from diffusiongemma.cli import machine
    from diffusiongemma.cli.checkup import Checkup
    from diffusiongemma.core.device import choose

    seen = Checkup(args.model, args.revision)
    opens = "no" if seen.problems else "yes"
    if seen.stored is not None:
        seen.facts["device and format"] = choose(None, None, seen.stored).reason
    report["checkpoint"] = seen.facts | {"opens": opens, "problems": seen.problems}
    if seen.weight_bytes:
        report["fits this checkpoint"] = machine.fit(seen.weight_bytes, gpus)
    return seen.problems


def _text(report: dict[str, Any]) -> str:
    lines: list[str] = []
    for section, facts in report.items():
        lines += [section, *_facts(facts, "  "), ""]
    return "\n".join(lines[:-1])


def _facts(facts: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_facts(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}problem: {item}" for item in value]
        elif name.endswith("_bytes"):
            said = "unknown" if value is None else f"{value / 1e9:,.1f} GB"
            lines.append(f"{indent}{name.removesuffix('_bytes')}: {said}")
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
