"""The verb `quantize`: a checkpoint in eight bits, and what that cost.

Knows options and what is written beside the weights. The work is `checkpoint.quantise`'s, the
measuring `damage`'s.
"""

import argparse
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffusiongemma.cli.options import Parser, add_model, take
from diffusiongemma.cli.output import as_json, give, say
from diffusiongemma.core.errors import CheckpointError, OptionError

USAGE = "diffusiongemma quantize [-m FOLDER] --out PATH [options]"
ABOUT = """\
Write a checkpoint whose experts and linear layers are in e4m3 (FP8-dynamic, as compressed-tensors
writes it), shard by shard, in memory for about one shard; then say what that did to the logits and,
on problems with known answers, to answers, steps and time."""
AFTER = """\
examples:
  diffusiongemma quantize --out small-fp8                the small model, and how it fares
  diffusiongemma quantize -m FOLDER --out small-fp8 --no-damage
  diffusiongemma -m small-fp8 "Reverse: lantern"
"""
_USUAL = 100  # problems of a task that the small model is asked
_MADE = """\
Made from {base} by `diffusiongemma quantize`: FP8-dynamic, as compressed-tensors writes it.
Attention, dense branches and experts are in e4m3 with one scale an output channel; activations are
quantised row by row as they come. Embedding and head, routers, norms, self-conditioning and the
vision tower are as they were.

{size}.\
"""


def parser() -> Parser:
    """The flags of this verb."""
    stray = "the folder to write is --out {word}, the model -m {word}"
    made = Parser("quantize", USAGE, ABOUT, AFTER, stray=stray)
    take(add_model(made), "offline")
    written = made.add_argument_group("what is written")
    take(written, "out", more=": a folder")
    take(written, "format", default="fp8")
    take(written, "overwrite")
    told = made.add_argument_group("the damage")
    take(told, "no-damage")
    take(told, "count", more=", which is a task", usual=f"{_USUAL} for the small model, else 0")
    take(told, "device", more=", where it is measured")
    take(told, "json")
    return made


def run(args: argparse.Namespace) -> int:
    """Quantise, measure, tell."""
    count = _count(args)
    if not args.out:
        raise OptionError("quantize writes a folder, and none is named; add --out FOLDER")
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
    write = partial(_card, source, out.resolve().name, origin(model, source))
    made = (lambda _: own) if own is not None else write
    quantise_folder(source, out, card=made, overwrite=args.overwrite, progress=shown)
    if not args.json:
        say(f"{out}: {_sizes(source, out)}")
    found: dict[str, Any] = {}
    if not args.no_damage:
        from diffusiongemma.cli import damage

        found = _damage(source, out, count, args)
        tables = damage.tables(found)
        if own is None:
            write_whole(out / CARD, write(out, tables).decode())
        if not args.json:
            say(f"\n{tables}")
    if args.json:
        sizes = {"before_bytes": _weight_bytes(source), "after_bytes": _weight_bytes(out)}
        give(as_json({"out": str(out), **sizes, **_plain(found)}, indent=2))
    return 0


def _card(source: Path, place: str, base: str | None, made: Path, tables: str = "") -> bytes:
    """The card of what was made, with what it cost once that is known."""
    from diffusiongemma.checkpoint import card
    from diffusiongemma.checkpoint.config import read_config
    from diffusiongemma.checkpoint.folder import BEFORE
    from diffusiongemma.core.reading import read_bytes
    from diffusiongemma.engine.open import SHIPPED

    name = "the small model in diffusiongemma" if source == SHIPPED else f"`{base or source.name}`"
    before = read_bytes(made / BEFORE)
    return card.compose(
        place,
        read_config(made).config,
        about=_MADE.format(base=name, size=_sizes(source, made)) + card.tell_before(before),
        base=base,
        relation="quantized",
        before=before,
        after=tables,
    ).encode()


def _sizes(source: Path, made: Path) -> str:
    before, after = (f"{_weight_bytes(folder) / 1e6:,.1f} MB" for folder in (source, made))
    return f"{after} of weights, before {before}"


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, for JSON."""
    return {
        name: [asdict(one) for one in value] if isinstance(value, list) else asdict(value)
        for name, value in found.items()
    }


def _check_out(out: Path, args: argparse.Namespace) -> None:
    """Whatever can be known to fail later fails now."""
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
    if args.no_damage and args.count is not None:
        raise OptionError("--count is asked of the damage; omit --no-damage")
    if args.count is None:
        return _USUAL if args.model is None else 0
    return args.count


def _damage(source: Path, out: Path, count: int, args: argparse.Namespace) -> dict[str, Any]:
    from diffusiongemma.cli import damage

    how: dict[str, Any] = {"device": args.device, "offline": True, "progress": False}

    def tell(word: str) -> None:
        say(f"measuring: {word}", aside=True)

    found: dict[str, Any] = {"logits": damage.logits(source, out, tell, **how)}
    if count:
        found["answers"], found["cost"] = damage.answers(source, out, count, tell, **how)
    return found
