"""The verb `run`, which is also meant where no verb is given: one prompt, one answer.

How a prompt is read is `asking`'s business, how an answer is shown `show`'s.
"""

import argparse

from diffusiongemma.cli.asking import add_question, open_model, read_question
from diffusiongemma.cli.options import Parser, add_sampling, take
from diffusiongemma.cli.output import as_json, check_open, give
from diffusiongemma.cli.verbs import HELP, VERBS
from diffusiongemma.cli.watching import add_watching, check_unwatched, watching

USAGE = """\
diffusiongemma [run] [-m FOLDER] [options] [PROMPT]
       diffusiongemma VERB [options]; diffusiongemma help VERB says which"""
ABOUT = "Answer a prompt with DiffusionGemma, a language model that writes by diffusion."
_VERBS = "\n".join(f"  {verb:12}{about}" for verb, about in VERBS.items())
AFTER = f"""\
verbs:
{_VERBS}
  {HELP:12}how a verb is used

A word alone that looks like a verb and is none is an error; after `run` or -- it is a prompt.

examples:
  diffusiongemma "Sort: 52 7 30 9 11"          the small model inside the package
  diffusiongemma -m FOLDER -i cat.png "What is this?" --seed 7
  cat notes.txt | diffusiongemma -m FOLDER "Sum this up." --json
  diffusiongemma trace "Reverse: lantern"      writes trace.html
"""


def parser() -> Parser:
    """The flags of this verb."""
    made = Parser("run", USAGE, ABOUT, AFTER)
    answer = add_question(made)
    take(answer, "json")
    add_watching(made)
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Answer."""
    check_open()
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
