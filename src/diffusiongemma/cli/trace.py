"""The verb `trace`: a run recorded, and a page or pictures that show how the answer came about.

Knows files and options. What is recorded is `engine.recorder`'s business, what is drawn that
of `replay` and `film`.
"""

import argparse
import os
import secrets
from collections.abc import Iterator
from typing import Any

from diffusiongemma.cli.asking import add_question, open_model, read_question
from diffusiongemma.cli.options import Parser, add_sampling, take
from diffusiongemma.cli.output import as_json, give, say
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.core.letters import brief

USAGE = (
    "diffusiongemma trace [-m FOLDER] [options] [PROMPT]\n"
    "       diffusiongemma trace --from FILE [--out PATH] [--picture NAME] [--canvas N]"
)
ABOUT = "Record how an answer comes about, and write one page that replays it, without a network."
AFTER = """\
examples:
  diffusiongemma trace "Sort: 7 30 9 1"                writes trace.html
  diffusiongemma trace "Sort: 7 30 9 1" --out run.jsonl --seed 7
  diffusiongemma trace --from run.jsonl --out run.html --out run.svg
"""
DEFAULT = "trace.html"
KINDS = {".jsonl": "trace", ".html": "page", ".svg": "picture"}


def parser() -> Parser:
    """The flags of this verb."""
    made = Parser("trace", USAGE, ABOUT, AFTER)
    files = made.add_argument_group("what is written", "What is in the way is replaced.")
    told = ": a page that replays the run (.html), the trace itself (.jsonl) or a picture (.svg)"
    take(files, "out", many=True, more=told, usual=DEFAULT)
    take(files, "picture", usual="moving")
    take(files, "canvas", usual="1")
    take(files, "from")
    take(add_question(made), "json", more=": the trace, in lines")
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Record or read, then write."""
    wanted = _wanted(args)
    trace = _record(args) if args.source is None else _read(args)
    if args.json:
        from diffusiongemma.engine.trace_file import lines

        give("\n".join(as_json(line) for line in lines(trace)))
    for path, text in _drawn(wanted, trace, args):
        write_whole(path, text)
        say(f"{path}  {len(text.encode()) / 1000:,.1f} kB", aside=args.json)
    return 0


def _wanted(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Kind and path of the files to write; what is surely wrong is refused before any work."""
    paths = args.out or ([] if args.json else [DEFAULT])
    wanted = [(_kind(path), path) for path in paths]
    real = [os.path.realpath(path) for path in paths]
    if len(set(real)) < len(real):
        raise OptionError(f"two of the files have one name; got {', '.join(paths)}")
    for path in paths:
        check_writable(path)
    for name in ("picture", "canvas"):
        if getattr(args, name) is not None and "picture" not in dict(wanted):
            raise OptionError(f"--{name} has no meaning without --out FILE.svg; add it, or omit it")
    return sorted(wanted, key=lambda one: list(KINDS.values()).index(one[0]))


def _kind(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    if ending not in KINDS:
        raise OptionError(
            f"--out: the ending says what is written, {', '.join(KINDS)}; got {brief(path)}"
        )
    return KINDS[ending]


def _read(args: argparse.Namespace) -> Any:
    """The trace that was named; what asks for a run has no meaning beside it."""
    from diffusiongemma.engine.trace_file import read

    own = {"out", "json", "picture", "canvas", "source", "debug"}
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
    from diffusiongemma.engine.recorder import Recorder, describe

    gemma = open_model(args)
    prompt = question.to(gemma)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    events = gemma.stream(prompt, seed=seed, **question.options)
    about = describe(gemma, prompt, model=args.model, seed=seed, options=question.options)
    recorder = Recorder(about, gemma.chat and gemma.chat.tokenizer)
    show = Show(gemma, speaks_ids=gemma.chat is None, think=False, live=False)
    show.follow(recorder.follow(events))
    return recorder.trace()


def _drawn(
    wanted: list[tuple[str, str]], trace: Any, args: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """Each path and its text; the trace comes first, so that no later trouble can lose it."""
    from diffusiongemma.cli import film, replay
    from diffusiongemma.engine.trace_file import text_of

    canvas = 0 if args.canvas is None else args.canvas - 1
    for kind, path in wanted:
        match kind:
            case "trace":
                yield path, text_of(trace)
            case "page":
                yield path, replay.page(trace)
            case _:
                draw = film.strip if args.picture == "strip" else film.moving
                yield path, draw(trace, canvas)
