"""The verb `doctor`: what this machine can run, and why; and whether a checkpoint opens.

Knows how a report is laid out. Facts come from `machine` and `checkup`.
"""

import argparse
from typing import TYPE_CHECKING, Any

from diffusiongemma.cli.options import Parser, add_model, take
from diffusiongemma.cli.output import as_json, check_open, give, say

if TYPE_CHECKING:  # it loads torch
    from diffusiongemma.cli.checkup import Checkup

USAGE = "diffusiongemma doctor [-m FOLDER] [--json]"
ABOUT = """\
Say what this machine can run and why, and whether a checkpoint opens: the small model inside the
package, or the one that -m names."""


def parser() -> Parser:
    """The flags of this verb."""
    made = Parser("doctor", USAGE, ABOUT, stray="a checkpoint is -m {word}")
    take(add_model(made), "json")
    return made


def run(args: argparse.Namespace) -> int:
    """Report."""
    check_open()
    from diffusiongemma.cli import machine
    from diffusiongemma.core.device import choose
    from diffusiongemma.core.errors import OptionError

    if args.revision is not None and args.model is None:
        raise OptionError("--revision needs -m with a hub id; name one, or omit it")
    gpus = machine.gpus()
    seen = _looked_at(args)
    report: dict[str, Any] = {
        "software": machine.software(),
        "processor": machine.processor(),
        "gpus": gpus,
        "kernels": {} if seen.config is None else machine.kernels(seen.config),
        "chat_templates": machine.templates(),
        "hub": machine.hub(),
        "released": {
            "model": machine.RELEASED,
            "device": choose(None, None, "bfloat16").reason,
            "fits": machine.fit(machine.RELEASED_BYTES, gpus),
        },
        "checkpoint": _checkpoint(seen, args.model, gpus),
    }
    if args.json:
        give(as_json(report, indent=2))
    else:
        say("\n\n".join(_section(name, facts) for name, facts in report.items()))
    return 0 if report["checkpoint"]["opens"] else 2


def _looked_at(args: argparse.Namespace) -> "Checkup":
    """The checkpoint that was named, or the one inside the package."""
    from diffusiongemma.cli.checkup import Checkup
    from diffusiongemma.engine.open import SHIPPED

    return Checkup(str(SHIPPED) if args.model is None else args.model, args.revision)


def _checkpoint(seen: "Checkup", model: str | None, gpus: dict[str, Any]) -> dict[str, Any]:
    from diffusiongemma.cli import machine
    from diffusiongemma.core.device import choose

    found = {"model": model or "the small model inside the package", **seen.facts}
    if seen.config is not None:
        found["device"] = choose(None, None, seen.config.dtype).reason
    if seen.weight_bytes:
        found["fits"] = machine.fit(seen.weight_bytes, gpus)
    return found | {"opens": not seen.problems, "problems": seen.problems}


def _section(name: str, facts: dict[str, Any]) -> str:
    return "\n".join([_words(name), *_lines(facts, "  ")])


def _lines(facts: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in facts.items():
        label = indent + _words(name)
        if name == "ops":
            lines += _table(value, indent)
        elif isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}problem: {item}" for item in value]
        else:
            lines.append(f"{label}: {_said(name, value)}")
    return lines


def _table(ops: dict[str, dict[str, Any]], indent: str) -> list[str]:
    """What runs each op, in columns."""
    rows = [["op", "backend", "batch-invariant", "cut-invariant", "reason"]]
    for name, fact in ops.items():
        promises = [_said("", fact[f"{one}_invariant"]) for one in ("batch", "cut")]
        rows.append([_words(name), fact["backend"], *promises, fact["reason"]])
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = [[word.ljust(n) for word, n in zip(row, [*widths, 0], strict=True)] for row in rows]
    return [f"{indent}{'  '.join(row)}" for row in cells]


def _words(name: str) -> str:
    # Names of formats, such as F8_E4M3, are words already.
    return name.removesuffix("_bytes").replace("_", " ") if name.islower() else name


def _said(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_bytes"):
            return f"{value / 1e9:,.3f} GB" if value < 1e8 else f"{value / 1e9:,.1f} GB"
        case int():
            return f"{value:,}"
        case None:
            return "unknown"
    return str(value)
