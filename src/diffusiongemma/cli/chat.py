"""The verb `chat`: a conversation, line by line; the canvas is refined before one's eyes.

Knows its commands. How a line is read is the business of `lines`, how an answer is shown of `show`,
what is remembered of the conversation, and what lies on disk of `saved`.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from diffusiongemma.cli import saved
from diffusiongemma.cli.asking import open_model
from diffusiongemma.cli.options import Parser, add_opened_model, add_sampling, check_sampling, take
from diffusiongemma.cli.output import as_json, give
from diffusiongemma.cli.watching import add_watching, check_unwatched, watching
from diffusiongemma.core.errors import DiffusionGemmaError, InputError, unknown_name

USAGE = "diffusiongemma chat [-m FOLDER] [options]"
ABOUT = "Talk with DiffusionGemma. What was said is remembered, and read only once."
COMMANDS = {
    "/help": "say this",
    "/new": "begin a new conversation",
    "/undo": "take the last question and its answer back",
    "/save": "FILE: write the conversation, as JSON that -c and other programs read",
    "/seed": "N: same seed, same answers; without N, a new one each time",
    "/quit": "leave; so do Ctrl-D, and Ctrl-C twice",
}
TAKES = ("/save", "/seed")
AFTER = "\n".join(
    [
        "commands at the prompt:",
        *(f"  {name:8}{about}" for name, about in COMMANDS.items()),
        "",
        "Ctrl-C stops an answer; what is committed of it stays. At the prompt it clears the line.",
        "A line that begins with // says something that begins with /. Where standard input is no",
        "terminal, each line is a turn.",
        "",
        "A conversation at a terminal is kept for -c, until the next one takes its place, in",
        f"~/.local/state/{saved.LAST} (or below XDG_STATE_HOME), which only you",
        "can read. --private keeps nothing.",
    ]
)


def parser() -> Parser:
    """The options of this verb."""
    made = Parser("chat", USAGE, ABOUT, AFTER, stray="questions are asked at the prompt")
    add_opened_model(made)
    asked = made.add_argument_group("the conversation")
    for name in ("continue", "private", "system", "guard", "think", "seed"):
        take(asked, name)
    take(asked, "stop", many=True)
    take(asked, "json", more=": an answer a line")
    add_watching(made)
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Talk until there is nothing more to say."""
    if sys.stdout is None or sys.stdin is None:
        raise InputError("a chat needs a standard input and output, and one of them is closed")
    check_sampling(args.sampling)
    if args.json:
        check_unwatched(args, "--json")
    said = _said(args)
    _Session(open_model(args), args, said).run()
    return 0


def _said(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What was said before, if this goes on with it."""
    if args.go_on is None:
        return []
    if not args.go_on and not saved.last().exists():
        raise InputError("no conversation was kept to go on with; leave -c out, or name a file")
    return saved.read(args.go_on or saved.last())


SMALL = """
The model inside the package solves small tasks and knows no language. Try: Sort: 52 7 30 9 11"""


class _Session:
    """One conversation at one terminal, or over two pipes."""

    def __init__(self, gemma: Any, args: argparse.Namespace, said: list[dict[str, Any]]) -> None:
        from diffusiongemma.cli.lines import Keys, Lines
        from diffusiongemma.cli.screen import Screen

        self._gemma, self._think, self._seed = gemma, args.think, args.seed
        self._model, self._json = args.model or gemma.folder.name, args.json
        system = args.system
        if said and said[0]["role"] in ("system", "developer"):
            earlier = _words(said.pop(0))[1]
            system = earlier if system is None else system
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._talk = gemma.converse(
            system=system, think=args.think, guard=args.guard, stop=args.stop, **args.sampling
        )
        self._talk.messages += said
        self._watching = watching(args, gemma.folder)
        self._screen, self._keys = Screen(), Keys()
        self._lines = Lines(self._screen, self._keys)
        self._lines.recall(text for role, text in map(_words, said) if role == "user" and text)
        # A pipe is somebody's program, which says so if it wants anything kept.
        self._keeps = not args.private and (self._lines.typed or args.go_on == "")

    def run(self) -> None:
        """Take line after line."""
        if not self._lines.typed:
            while (line := self._lines.take()) is not None and self._take(line):
                pass
            return
        self._greet()
        with self._keys.ours():
            while (line := self._lines.take()) is not None:
                try:
                    if not self._take(line):
                        return
                except DiffusionGemmaError as error:
                    self._screen.note(f"error: {error}")

    def _greet(self) -> None:
        from diffusiongemma.engine.open import SHIPPED

        about = f"{self._gemma.folder.name}; /help lists the commands, Ctrl-D leaves"
        self._screen.note(f"{about}{SMALL if self._gemma.folder == SHIPPED else ''}")
        if self._talk.messages:
            self._screen.note(f"it goes on after {len(self._talk.messages)} messages:")
            for role, text in map(_words, self._talk.messages[-2:]):
                self._screen.note(f"> {text}" if role == "user" else text)

    def _take(self, line: str) -> bool:
        """Do what a line says; False to leave."""
        if line.startswith("/") and not line.startswith("//"):
            try:
                with self._keys:
                    return self._obey(line)
            except KeyboardInterrupt:
                if not self._lines.typed:
                    raise
                self._screen.note("stopped")
        elif line.strip():
            self._answer(line.removeprefix("/") if line.startswith("//") else line)
        return True

    def _obey(self, line: str) -> bool:
        """Do what a command says; False to leave."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command not in COMMANDS:
            raise InputError(unknown_name("command", command, COMMANDS))
        if rest and command not in TAKES:
            raise InputError(f"{command} takes nothing, got '{rest}'; leave it out")
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
                if undone:
                    self._keep()
            case "/save":
                self._save(rest)
            case "/seed":
                self._seed = _seed(rest)
                self._screen.note(
                    "a new seed for each answer" if self._seed is None else f"seed {self._seed}"
                )
        return True

    def _answer(self, text: str) -> None:
        from diffusiongemma.cli.show import Show, document

        before = len(self._talk.messages)
        live = not self._json
        show = Show(self._gemma, speaks_ids=False, think=self._think, live=live, **self._watching)
        events = None
        try:
            with self._keys:
                events = self._talk.stream(text, seed=self._seed)
                reply = show.follow(events)
        except KeyboardInterrupt:
            if events is not None:
                events.close()
            kept = len(self._talk.messages) > before
            said = kept and not self._json  # half an answer is no document
            show.stop(self._talk.messages[-1]["content"] if said else "")
            if not self._lines.typed:
                raise
            self._screen.note(
                "stopped; what is written stays" if kept else "stopped, and not remembered"
            )
        else:
            if self._json:
                give(as_json(document(reply, self._gemma, self._model)))
            else:
                show.finish(reply)
            sys.stdout.flush()
        self._keep()

    def _all(self) -> list[Mapping[str, Any]]:
        return [*self._system, *self._talk.messages]

    def _save(self, path: str) -> None:
        if not path:
            raise InputError("/save needs the name of a file")
        if not self._talk.messages:
            raise InputError("nothing was said yet, so there is nothing to save")
        file = saved.save(path, self._all())
        self._screen.note(f"{len(self._talk.messages)} messages are in {file}")

    def _keep(self) -> None:
        """Keep the conversation for the next time; a disk that has no room for it ends nothing."""
        if not self._keeps:
            return
        try:
            saved.keep(self._all())
        except DiffusionGemmaError as error:
            self._keeps = False
            self._screen.note(f"this conversation is not kept for -c: {error}")


def _words(message: Mapping[str, Any]) -> tuple[str, str]:
    """Who says a message, and its text."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        parts = [part if isinstance(part, str) else part.get("text", "") for part in content]
        content = "".join(parts)
    return str(message.get("role")), content


def _seed(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64):
        raise InputError(f"a seed is a whole number from 0 to 2**64 - 1, got '{text}'")
    return int(text)
