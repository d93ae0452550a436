"""The verb `chat`: a conversation, line by line; the canvas is refined before one's eyes.

Knows the prompt and its commands. How an answer is shown is `show`'s business, what is remembered
the conversation's.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from diffusiongemma.cli.asking import open_model
from diffusiongemma.cli.options import Parser, add_opened_model, add_sampling, check_sampling, whole
from diffusiongemma.cli.watching import add_watching, watching
from diffusiongemma.core.errors import DiffusionGemmaError, InputError, unknown_name

USAGE = "diffusiongemma chat [-m FOLDER] [options]"
ABOUT = "Talk with DiffusionGemma. What was said is remembered, and read only once."
COMMANDS = {
    "/help": "say this",
    "/new": "begin a new conversation",
    "/undo": "take the last question and its answer back",
    "/seed": "N: same seed, same answers; without N, a new one each time",
    "/quit": "leave; so do Ctrl-D, and Ctrl-C at the prompt",
}
AFTER = "\n".join(
    [
        "commands at the prompt:",
        *(f"  {name:8}{about}" for name, about in COMMANDS.items()),
        "",
        "Ctrl-C stops an answer; what is committed of it stays. A line that begins with // says",
        "something that begins with /. Where standard input is no terminal, each line is a turn.",
    ]
)


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    add_opened_model(made)
    asked = made.add_argument_group("the conversation")
    asked.add_argument("-s", "--system", metavar="TEXT", help="a system message")
    asked.add_argument(
        "--guard", action="store_true", help="read control tokens that a message spells as letters"
    )
    asked.add_argument("--think", action="store_true", help="think before answering")
    asked.add_argument("--seed", type=whole, metavar="N", help="of every answer")
    asked.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this (repeatable)"
    )
    add_watching(made)
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Talk until there is nothing more to say."""
    if sys.stdout is None or sys.stdin is None:
        raise InputError("a chat needs a standard input and output, and one of them is closed")
    check_sampling(args.sampling)
    _Session(open_model(args), args).run()
    return 0


SMALL = """
The model inside the package solves small tasks and knows no language. Try: Sort: 52 7 30 9 11"""


class _Session:
    """One conversation at one terminal, or over two pipes."""

    def __init__(self, gemma: Any, args: argparse.Namespace) -> None:
        from diffusiongemma.cli.screen import Screen

        self._gemma, self._think, self._seed = gemma, args.think, args.seed
        self._talk = gemma.converse(
            system=args.system, think=args.think, guard=args.guard, stop=args.stop, **args.sampling
        )
        self._watching = watching(args, gemma.folder)
        self._typed = sys.stdin.isatty()
        self._screen = Screen()

    def run(self) -> None:
        """Take line after line."""
        from diffusiongemma.engine.open import SHIPPED

        if self._typed:
            about = f"{self._gemma.folder.name}; /help lists the commands, Ctrl-D leaves"
            self._screen.note(f"{about}{SMALL if self._gemma.folder == SHIPPED else ''}")
        for line in self._lines():
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if not self._obey(line):
                        return
                elif line.strip():
                    self._answer(line.removeprefix("/") if line.startswith("//") else line)
            except DiffusionGemmaError as error:
                if not self._typed:
                    raise
                self._screen.note(f"error: {error}")

    def _lines(self) -> Iterator[str]:
        if self._typed and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline

                readline.parse_and_bind("tab: self-insert")  # it would complete names of files
        while True:
            try:
                yield self._line()
            except EOFError:
                if self._typed:
                    self._screen.note("")
                return
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input is no text in UTF-8 ({error.reason} at byte {error.start}); "
                    "convert it first"
                ) from error
            except KeyboardInterrupt:
                if self._typed:
                    self._screen.note("")
                raise

    def _line(self) -> str:
        if self._typed and sys.stdout.isatty():
            return input("> ")
        if self._typed:  # the answers go elsewhere, and so the prompt must not go with them
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _obey(self, line: str) -> bool:
        """Do what a command says; False to leave."""
        command, _, rest = line.partition(" ")
        if command not in COMMANDS:
            raise InputError(unknown_name("command", command, COMMANDS))
        if rest.strip() and command != "/seed":
            raise InputError(f"{command} takes nothing, got '{rest.strip()}'; leave it out")
        match command:
            case "/quit":
                return False
            case "/help":
                self._screen.note(AFTER)
            case "/new":
                self._talk.forget()
                self._screen.note("a new conversation")
            case "/undo":
                undone = self._talk.undo()
                left = len(self._talk.messages)
                said = f"taken back; {left} messages are left" if undone else "nothing was said yet"
                self._screen.note(said)
            case "/seed":
                self._seed = _seed(rest.strip())
                self._screen.note(
                    "a new seed for each answer" if self._seed is None else f"seed {self._seed}"
                )
        return True

    def _answer(self, text: str) -> None:
        from diffusiongemma.cli.show import Show

        before = len(self._talk.messages)
        events = self._talk.stream(text, seed=self._seed)
        show = Show(self._gemma, speaks_ids=False, think=self._think, live=True, **self._watching)
        try:
            show.finish(show.follow(events))
            sys.stdout.flush()
        except KeyboardInterrupt:
            events.close()
            kept = len(self._talk.messages) > before
            show.stop(self._talk.messages[-1]["content"] if kept else "")
            if not self._typed:
                raise
            self._screen.note(
                "stopped; what is written stays" if kept else "stopped, and not remembered"
            )


def _seed(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64):
        raise InputError(f"a seed is a whole number from 0 to 2**64 - 1, got '{text}'")
    return int(text)
