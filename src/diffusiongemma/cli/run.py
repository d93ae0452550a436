"""The verb `run`, which is also meant where no verb is given: one prompt, one answer.

How a prompt is read is `asking`'s business, how an answer is shown `show`'s.
"""

import argparse
import sys

from diffusiongemma.cli.asking import add_question, open_model, read_question
from diffusiongemma.cli.options import Parser, add_sampling
from diffusiongemma.cli.output import as_json, give
from diffusiongemma.cli.watching import add_watching, check_unwatched, watching
from diffusiongemma.core.errors import InputError

USAGE = "diffusiongemma [run] [-m FOLDER] [options] [PROMPT]\n       diffusiongemma doctor --help"
ABOUT = "Answer a prompt with DiffusionGemma, a language model that writes by diffusion."
AFTER = """\
examples:
  diffusiongemma "Sort: 52 7 30 9 11"          the small model inside the package
  diffusiongemma -m FOLDER -i cat.png "What is this?" --seed 7
  cat notes.txt | diffusiongemma -m FOLDER "Sum this up." --json
  diffusiongemma chat                          a conversation, as the canvas refines
  diffusiongemma trace "Reverse: lantern"      a page that replays how an answer came about
  diffusiongemma evaluate                      how many problems it solves
  diffusiongemma quantize OUT                  its weights in eight bits, and what that costs
  diffusiongemma bench                         how fast it is, beside transformers
  diffusiongemma doctor                        what this machine can run, and why
"""


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    answer = add_question(made)
    answer.add_argument("--json", action="store_true", help="print one JSON document")
    add_watching(made)
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Answer."""
    if sys.stdout is None:
        raise InputError("standard output is closed, and the answer has nowhere to go")
    if args.json:
        check_unwatched(args, "--json")
    question = read_question(args)

    from diffusiongemma.cli.show import Show, document

    gemma = open_model(args)
    events = gemma.stream(question.to(gemma), seed=args.seed, **question.options)
    speaks_ids = args.ids or gemma.chat is None
    seen = watching(args, gemma.folder)
    show = Show(gemma, speaks_ids=speaks_ids, think=args.think, live=not args.json, **seen)
    try:
        reply = show.follow(events)
    except KeyboardInterrupt:
        show.stop()
        raise
    if args.json:
        give(as_json(document(reply, gemma, args.model or gemma.folder.name)))
    else:
        show.finish(reply)
    return 0
