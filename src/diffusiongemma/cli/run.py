"""The verb `run`, which is also meant where no verb is given: one prompt, one answer.

Everything that can be checked without the model is checked before it is loaded.
"""

import argparse
import json
import os
import re
import select
import stat
import sys
from typing import Any

from diffusiongemma.cli.options import Parser, add_model, add_sampling, check_sampling, whole
from diffusiongemma.cli.screen import as_json
from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.dialog.settings import BUDGETS

USAGE = "diffusiongemma [run] -m FOLDER [options] [PROMPT]\n       diffusiongemma doctor --help"
ABOUT = "Answer a prompt with DiffusionGemma, a language model that writes by diffusion."
AFTER = """\
examples:
  diffusiongemma -m FOLDER "Why is the sky blue?"
  diffusiongemma -m FOLDER -i cat.png "What is this?" --seed 7
  cat notes.txt | diffusiongemma -m FOLDER "Sum this up." --json
  diffusiongemma doctor                        what this machine can run, and why
"""


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    made.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the question; text piped in is added to it, and - is that text alone",
    )
    model = add_model(made)
    model.add_argument("--offline", action="store_true", help="take nothing from the network")
    model.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N")
    model.add_argument("--dtype", metavar="NAME", help="bfloat16, float32 or float16")
    asked = made.add_argument_group("the question")
    asked.add_argument("-s", "--system", metavar="TEXT", help="a system message")
    asked.add_argument(
        "-i", "--image", metavar="FILE", action="append", default=[], help="a picture (repeatable)"
    )
    asked.add_argument(
        "--image-tokens",
        type=whole,
        metavar="N",
        choices=BUDGETS,
        help=f"how finely pictures are seen: {', '.join(map(str, BUDGETS))}",
    )
    asked.add_argument(
        "--guard", action="store_true", help="read control tokens that the prompt spells as letters"
    )
    asked.add_argument("--think", action="store_true", help="think before answering")
    asked.add_argument("--tools", metavar="FILE", help="JSON: a list of tools it may call")
    asked.add_argument(
        "--ids", action="store_true", help="the prompt is token ids, and so is the answer"
    )
    answer = made.add_argument_group("the answer")
    answer.add_argument("--seed", type=whole, metavar="N", help="same seed, same answer")
    answer.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this (repeatable)"
    )
    answer.add_argument("--json", action="store_true", help="print one JSON document")
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Answer."""
    if sys.stdout is None:
        raise InputError("standard output is closed, and the answer has nowhere to go")
    check_sampling(args.sampling)
    if args.image_tokens is not None and not args.image:
        raise OptionError("--image-tokens has no meaning without a picture; add -i, or omit it")
    text = _prompt(args)
    prompt = _ids(text) if args.ids else text
    tools = _tools(args.tools)
    images = _images(args.image)

    from diffusiongemma.cli.show import Show, document
    from diffusiongemma.engine.open import load

    gemma = load(
        args.model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        offline=args.offline or None,
    )
    if gemma.chat is None and not args.ids:
        prompt = _ids(text, "this checkpoint has no tokenizer, so a prompt is token ids; ")
    speaks_ids = args.ids or gemma.chat is None
    events = gemma.stream(
        prompt,
        seed=args.seed,
        stop=args.stop,
        system=args.system,
        images=images,
        think=args.think,
        tools=tools,
        image_tokens=args.image_tokens,
        guard=args.guard,
        **args.sampling,
    )
    show = Show(gemma, speaks_ids=speaks_ids, think=args.think, live=not args.json)
    reply = show.follow(events)
    if args.json:
        print(as_json(document(reply, gemma, args.model)))
    else:
        show.finish(reply)
    return 0


def _prompt(args: argparse.Namespace) -> str:
    """What was written and what was piped in, with a blank line between them."""
    parts = [] if args.prompt in (None, "-") else [args.prompt]
    if args.prompt == "-" or _is_piped():
        if sys.stdin is None:
            raise InputError("standard input is closed; write the prompt in quotes, without '-'")
        try:
            _say_if_waiting()
            parts.append(sys.stdin.read().rstrip("\n"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input is no text in UTF-8 ({error.reason} at byte {error.start}); "
                "convert it first, or pass a picture with -i"
            ) from error
    text = "\n\n".join(part for part in parts if part.strip())
    if not text and not args.image:
        raise InputError(
            "there is no prompt; write one in quotes or pipe one in, see diffusiongemma --help"
        )
    return text


def _say_if_waiting() -> None:
    """A pipe that nobody closes would otherwise look like a model that thinks."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], 2.0)
    except (OSError, ValueError):  # not something that can be waited for: it is ready
        return
    if not ready:
        print(
            "reading the prompt from standard input; </dev/null on the command line gives none",
            file=sys.stderr,
        )


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: something meant for us, and with an end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _ids(text: str, why: str = "") -> list[int]:
    parts = re.split(r"[\s,]+", text.strip("[], \t\n"))
    for part in parts:
        if not re.fullmatch(r"-?[0-9]{1,18}", part):
            raise InputError(
                f"{why}token ids are whole numbers with spaces or commas between them, got "
                f"'{part[:40]}'"
            )
    return [int(part) for part in parts]


def _tools(path: str | None) -> Any:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            tools = json.load(file)
    except OSError as error:
        raise InputError(f"tools '{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"tools '{path}' is not JSON ({error}); write a list of tools") from error
    from diffusiongemma.dialog.tools import check_tools

    check_tools(tools)
    return tools


def _images(paths: list[str]) -> list[Any]:
    if not paths:
        return []
    from diffusiongemma.dialog.images import load

    return [load(path) for path in paths]
