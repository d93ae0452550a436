"""The verb `trace`: a run recorded, and a page or pictures that show how the answer came about.

Knows files and options. What is recorded is `engine.trace`'s business, what is drawn that of
`replay` and `film`.
"""

import argparse
import os
import secrets
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from diffusiongemma.cli.asking import add_question, open_model, read_question
from diffusiongemma.cli.options import Parser, add_sampling, flag_of, whole
from diffusiongemma.cli.output import say
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.diffusion.config import SamplerConfig

USAGE = (
    "diffusiongemma trace [-m FOLDER] [options] [PROMPT]\n"
    "       diffusiongemma trace --from FILE [-o FILE] [--svg FILE] [--strip FILE]"
)
ABOUT = "Record how an answer comes about, and write one page that replays it, without a network."
AFTER = """\
examples:
  diffusiongemma trace "Sort: 7 30 9 1"                writes trace.html
  diffusiongemma trace "Sort: 7 30 9 1" --json run.jsonl --seed 7
  diffusiongemma trace --from run.jsonl -o run.html --svg run.svg
"""
DEFAULT = "trace.html"


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    files = made.add_argument_group(
        "what is written", f"What is in the way is replaced. Where nothing is named: {DEFAULT}"
    )
    files.add_argument("-o", "--output", metavar="FILE", help="a page that replays the run")
    files.add_argument("--json", metavar="FILE", help="the trace itself, as JSON lines")
    files.add_argument("--svg", metavar="FILE", help="a moving picture of one canvas")
    files.add_argument("--strip", metavar="FILE", help="a picture of its moments, side by side")
    files.add_argument(
        "--canvas", type=whole, metavar="N", default=1, help="which canvas the pictures show (1)"
    )
    files.add_argument(
        "--from", dest="source", metavar="FILE", help="draw this trace; no model is needed"
    )
    add_question(made)
    add_sampling(made, short=False)
    return made


def run(args: argparse.Namespace) -> int:
    """Record or read, then write."""
    wanted = _wanted(args)
    trace = _record(args) if args.source is None else _read(args)
    for path, text in _drawn(wanted, trace, args.canvas - 1):
        write_whole(path, text)
        say(f"{path}  {len(text.encode()) / 1000:,.1f} kB")
    return 0


def _wanted(args: argparse.Namespace) -> dict[str, str]:
    """Kind -> path of the files to write; what is surely wrong is refused before any work."""
    kinds = ("json", "output", "strip", "svg")
    wanted = {kind: getattr(args, kind) for kind in kinds if getattr(args, kind) is not None}
    name = (args.output or "").partition("=")[0]
    if "=" in (args.output or "") and name in {field.name for field in fields(SamplerConfig)}:
        raise OptionError(f"-o names the page to write here; for {name} there is {flag_of(name)}")
    wanted = wanted or {"output": DEFAULT}
    real = [os.path.realpath(path) for path in wanted.values()]
    if len(set(real)) < len(real):
        raise OptionError(f"two of the files have one name; got {', '.join(wanted.values())}")
    for path in wanted.values():
        check_writable(path)
    if args.canvas < 1:
        raise OptionError(f"--canvas counts from 1, got {args.canvas}")
    if args.canvas != 1 and not {"svg", "strip"} & set(wanted):
        raise OptionError("--canvas has no meaning without --svg or --strip; add one, or omit it")
    return wanted


def _read(args: argparse.Namespace) -> Any:
    """The trace that was named; what asks for a run has no meaning beside it."""
    from diffusiongemma.engine.trace_file import read

    own = {"output", "json", "svg", "strip", "canvas", "source", "debug"}
    usual = parser()
    for name, value in vars(args).items():
        if name not in own and value != usual.get_default(name):
            raise OptionError(
                f"--from draws a trace that is there, and '{name}' belongs to a run; omit one"
            )
    return read(args.source)


def _record(args: argparse.Namespace) -> Any:
    question = read_question(args)

    from diffusiongemma.cli.show import Show
    from diffusiongemma.engine.trace import Recorder, describe

    gemma = open_model(args)
    prompt = question.to(gemma)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    events = gemma.stream(prompt, seed=seed, **question.options)
    about = describe(gemma, prompt, model=args.model, seed=seed, options=question.options)
    recorder = Recorder(about, gemma.chat and gemma.chat.tokenizer)
    show = Show(gemma, speaks_ids=gemma.chat is None, think=False, live=False)
    show.follow(recorder.follow(events))
    return recorder.trace()


def _drawn(wanted: dict[str, str], trace: Any, canvas: int) -> Iterator[tuple[str, str]]:
    """Each path and its text; the trace comes first, so that no later trouble can lose it."""
    from diffusiongemma.cli import film, replay
    from diffusiongemma.engine.trace_file import text_of

    if "json" in wanted:
        yield wanted["json"], text_of(trace)
    if "output" in wanted:
        yield wanted["output"], replay.page(trace)
    if "strip" in wanted:
        yield wanted["strip"], film.strip(trace, canvas)
    if "svg" in wanted:
        yield wanted["svg"], film.moving(trace, canvas)
