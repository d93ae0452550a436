"""The verb `quantize`: a checkpoint in eight bits, and what that cost.

Knows options and what is written beside the weights. The work is `checkpoint.quantise`'s, the
measuring `damage`'s.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from diffusiongemma.cli.options import Parser, whole
from diffusiongemma.cli.output import say
from diffusiongemma.core.errors import CheckpointError, OptionError, unknown_name

USAGE = "diffusiongemma quantize [MODEL] OUT [options]"
ABOUT = """\
Write a checkpoint whose experts and linear layers are in e4m3 (FP8-dynamic, as compressed-tensors
writes it), shard by shard, in memory for about one shard; then say what that did to the logits and,
on problems with known answers, to answers, steps and time."""
AFTER = """\
examples:
  diffusiongemma quantize small-fp8                      the small model, and how it fares
  diffusiongemma quantize FOLDER OUT --no-damage
  diffusiongemma -m small-fp8 "Reverse: lantern"
"""
FORMATS = ("fp8",)
_USUAL = 100  # problems of a task that the small model is asked
_MOST = 100_000
_MADE = """\
Made from {base} by `diffusiongemma quantize`: FP8-dynamic, as compressed-tensors writes it.
Attention, dense branches and experts are in e4m3 with one scale an output channel; activations are
quantised row by row as they come. Embedding and head, routers, norms, self-conditioning and the
vision tower are as they were.

{size}.\
"""


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    made.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a checkpoint's folder or hub id (the small model inside the package)",
    )
    made.add_argument("out", metavar="OUT", help="the folder to write")
    made.add_argument("--format", default="fp8", metavar="NAME", help="fp8 (fp8)")
    made.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is at OUT"
    )
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    made.add_argument("--offline", action="store_true", help="take nothing from the network")
    told = made.add_argument_group("the damage")
    told.add_argument("--no-damage", action="store_true", help="only write")
    told.add_argument(
        "--problems",
        type=whole,
        metavar="N",
        help=f"held-out problems a task ({_USUAL} for the small model, else 0)",
    )
    told.add_argument("--device", metavar="NAME", help="where it is measured: cpu, cuda or cuda:N")
    return made


def run(args: argparse.Namespace) -> int:
    """Quantise, measure, tell."""
    if args.format not in FORMATS:
        raise OptionError(unknown_name("format", args.format, FORMATS))
    count = _count(args)
    from diffusiongemma.checkpoint.folder import CARD, destination, origin

    out = destination(args.out)
    _check_out(out, args)

    from diffusiongemma.checkpoint import card, hub
    from diffusiongemma.checkpoint.quantise import quantise_folder
    from diffusiongemma.core.files import write_whole
    from diffusiongemma.engine.open import SHIPPED

    shown = sys.stderr is not None and sys.stderr.isatty()
    model = SHIPPED if args.model is None else args.model
    source = hub.find(model, revision=args.revision, offline=args.offline or None, progress=shown)
    _check_apart(source, out)
    own = card.by_hand(out)
    before = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    quantise_folder(source, out, overwrite=args.overwrite, progress=shown)
    after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    size = f"{after / 1e6:,.1f} MB of weights, before {before / 1e6:,.1f} MB"
    write = partial(_card, source, out, origin(model, source), size)
    write_whole(out / CARD, own.decode("utf-8", "replace") if own is not None else write(""))
    say(f"{out}: {size}")
    if not args.no_damage:
        tables = _damage(source, out, count, args)
        if own is None:
            write_whole(out / CARD, write(tables))
        say(f"\n{tables}")
    return 0


def _card(source: Path, out: Path, base: str | None, size: str, tables: str) -> str:
    from diffusiongemma.checkpoint import card
    from diffusiongemma.checkpoint.config import read_config
    from diffusiongemma.checkpoint.folder import CARD
    from diffusiongemma.core.reading import read_bytes
    from diffusiongemma.engine.open import SHIPPED

    name = "the small model in diffusiongemma" if source == SHIPPED else f"`{base or source.name}`"
    return card.compose(
        out.resolve().name,
        read_config(out).config,
        about=_MADE.format(base=name, size=size),
        base=base,
        relation="quantized",
        before=read_bytes(source / CARD),
        after=tables,
    )


def _check_out(out: Path, args: argparse.Namespace) -> None:
    """Whatever can be known to fail later fails now."""
    config = out / "config.json"
    if args.model is None and config.is_file() and "quantization_config" not in config.read_text():
        raise OptionError(
            f"{out} is a checkpoint; to quantise it, name a folder for the result too: "
            f"diffusiongemma quantize {out} OUT"
        )
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not args.overwrite and os.path.lexists(out) and not empty:
        raise CheckpointError(f"{out} exists; name another folder, or pass --overwrite")
    if args.no_damage and args.device is not None:
        raise OptionError("--device is where the damage is measured; omit --no-damage")
    if not args.no_damage:
        from diffusiongemma.core.device import choose

        choose(args.device, None, "float32")


def _check_apart(source: Path, out: Path) -> None:
    """Replacing a folder replaces all that lies in it."""
    read, written = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if read == written:
        raise CheckpointError(f"{out} is the checkpoint that is read; name another folder")
    if read.is_relative_to(written) or written.is_relative_to(read):
        raise CheckpointError(
            f"{out} and {source} lie one within the other; name a folder beside it"
        )


def _count(args: argparse.Namespace) -> int:
    if args.no_damage and args.problems is not None:
        raise OptionError("--problems is asked of the damage; omit --no-damage")
    if args.problems is None:
        return _USUAL if args.model is None else 0
    if not 0 <= args.problems <= _MOST:
        raise OptionError(f"--problems must be from 0 to {_MOST:,}, got {args.problems}")
    return args.problems


def _damage(source: Path, out: Path, count: int, args: argparse.Namespace) -> str:
    from diffusiongemma.cli import damage

    how: dict[str, Any] = {"device": args.device, "offline": True, "progress": False}

    def tell(word: str) -> None:
        say(f"measuring: {word}", aside=True)

    parts = [
        "## What it cost",
        "The same canvases of held-out problems before both, at several levels of noise:",
        damage.logits(source, out, tell, **how),
    ]
    if count:
        parts += [
            "Held-out problems, answered by both with the same random numbers:",
            damage.answers(source, out, count, tell, **how),
        ]
    return "\n\n".join(parts)
