"""One question and its options, as the verbs `run` and `trace` take them.

Everything that can be checked without the model is checked before it is loaded.
"""

import argparse
import json
import os
import re
import select
import stat
import sys
from dataclasses import dataclass
from typing import Any

from diffusiongemma.cli.options import Group, Parser, add_opened_model, check_sampling, take
from diffusiongemma.cli.output import say
from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.core.letters import brief
from diffusiongemma.dialog.settings import BUDGETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        text: the prompt as it was written and piped in.
        prompt: the text, or the token ids that it spells.
        options: what `Gemma.stream` is to be called with beside it.
    """

    text: str
    prompt: str | list[int]
    options: dict[str, Any]

    def to(self, gemma: Any) -> str | list[int]:
        """The prompt as this checkpoint can take it."""
        if gemma.chat is None and isinstance(self.prompt, str):
            return _ids(self.text, "this checkpoint has no tokenizer, so a prompt is token ids; ")
        return self.prompt


def add_question(made: Parser) -> Group:
    """Add the prompt, the model and what decides an answer but sampling; gives the last group."""
    made.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the question; text piped in is added to it, and - is that text alone",
    )
    add_opened_model(made)
    asked = made.add_argument_group("the question")
    take(asked, "system")
    take(asked, "image", many=True)
    take(asked, "image-tokens", choices=BUDGETS)
    for name in ("guard", "think", "tools", "ids"):
        take(asked, name)
    answer = made.add_argument_group("the answer")
    take(answer, "seed")
    take(answer, "stop", many=True)
    return answer


def read_question(args: argparse.Namespace) -> Question:
    """Read and check what was asked.

    Raises:
        InputError: no prompt, or one that cannot be read.
        OptionError: an option that has no meaning here.
    """
    check_sampling(args.sampling)
    if args.image_tokens is not None and not args.image:
        raise OptionError("--image-tokens has no meaning without a picture; add -i, or omit it")
    text = _prompt(args)
    prompt = _ids(text) if args.ids else text
    options = {
        "stop": args.stop,
        "system": args.system,
        "tools": _tools(args.tools),
        "images": _images(args.image),
        "think": args.think,
        "image_tokens": args.image_tokens,
        "guard": args.guard,
        **args.sampling,
    }
    return Question(text=text, prompt=prompt, options=options)


def open_model(args: argparse.Namespace) -> Any:
    """Load the model that was named."""
    from diffusiongemma.core.device import settle_threads
    from diffusiongemma.engine.open import load
    from diffusiongemma.model.count import parameters

    gemma = load(
        args.model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        offline=args.offline or None,
    )
    settle_threads(gemma.device.device, parameters(gemma.model.config))
    return gemma


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
        say(
            "reading the prompt from standard input; </dev/null on the command line gives none",
            aside=True,
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
                f"{brief(part)}"
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
