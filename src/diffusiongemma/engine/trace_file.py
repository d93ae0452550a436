"""Traces as JSON lines, written whole or not at all, and read with every field checked.

One line each for the run, for the noise that a canvas starts from, for a step, for a commit, for
the end. A line that shows a token for the first time says under `words` how it reads.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.files import write_whole
from diffusiongemma.core.letters import brief
from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.engine.events import Committed, Event, Finished, Refined
from diffusiongemma.engine.reply import Reply, Stats
from diffusiongemma.engine.trace import KINDS, LIMIT, About, Token, Trace, clean

FORMAT = 1
MAX_BYTES = 64_000_000  # of a file that is read; the largest trace is a third of it
MAX_BRACKETS = 3_000_000  # and ends of lines; the shortest step has six, in 150 bytes
MAX_NATS = 1e6  # of doubt; a vocabulary of a million has 14
MAX_DEPTH = 40  # of values within values

Kind = TypeVar("Kind")


def lines(trace: Trace) -> Iterator[dict[str, Any]]:
    """A trace as its lines, parsed."""
    yield {"kind": "run", "format": FORMAT, **asdict(trace.about)}
    known: set[int] = set()
    after: tuple[int, ...] = ()
    for event in trace.events:
        match event:
            case Refined():
                if event.before != after:
                    draft = {"kind": "draft", "canvas": event.canvas, "tokens": event.before}
                    yield draft | _words(trace, known, event.before)
                yield _step(event) | _words(trace, known, event.best + event.after)
                after = event.after
            case Committed():
                words = _words(trace, known, event.tokens)
                yield {"kind": "commit", **asdict(event)} | words
                after = ()
            case Finished(reply=reply):
                stats = reply.stats.as_dict()
                yield {"kind": "end", **asdict(reply), "stats": stats, "left_out": trace.left_out}


def write(trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Write a trace as JSON lines.

    Raises:
        InputError: the file cannot be written.
    """
    return write_whole(path, text_of(trace))


def text_of(trace: Trace) -> str:
    """A trace as JSON lines."""
    made = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines(trace))
    return "".join(f"{line}\n" for line in made)


def read(path: str | os.PathLike[str]) -> Trace:
    """Read a trace back: equal to what was written.

    Raises:
        InputError: the file cannot be read, or is no trace, or too large a one.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise InputError(f"'{name}' is larger than {MAX_BYTES:,} bytes, so it is no trace")
        if sum(map(raw.count, (b"[", b"{", b"\n"))) > MAX_BRACKETS or raw.count(b",") > 10 * LIMIT:
            raise InputError(f"'{name}' has more values than any trace, so it is none")
        text = raw.decode()
    except OSError as error:
        raise InputError(
            f"trace '{name}' cannot be read: {error.strerror or error}; name a file that "
            "`diffusiongemma trace --json` wrote"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{name}' is no text in UTF-8, so it is no trace") from error
    reader = _Reader(name)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            reader.take(_Line(f"'{name}', line {number}", line))
    return reader.trace()


def _step(step: Refined) -> dict[str, Any]:
    return {
        "kind": "step",
        "canvas": step.canvas,
        "step": step.step,
        "temperature": step.temperature,
        "best": step.best,
        "after": step.after,
        "entropy": step.entropy,
        "accepted": _flags(step.accepted),
        "revised": _flags(step.revised),
    }


def _flags(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _words(trace: Trace, known: set[int], ids: Sequence[int]) -> dict[str, Any]:
    fresh = sorted(set(ids) - known)
    known.update(fresh)
    words = {str(n): [trace.tokens[n].kind, trace.tokens[n].text] for n in fresh}
    return {"words": words} if words else {}


class _Line:
    """One line, whose fields are asked for by name and kind."""

    def __init__(self, where: str, text: str) -> None:
        self.where = where
        try:
            parsed = json.loads(text, parse_constant=_no_number)
            shallow = _depth(parsed) <= MAX_DEPTH
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}); it is no trace, or damaged") from None
        if not isinstance(parsed, dict) or not shallow:
            raise self.wrong("must be a JSON object", parsed)
        self._fields: dict[str, Any] = parsed

    def wrong(self, what: str, got: object) -> InputError:
        return InputError(f"{self.where} {what}, got {brief(got)}; is this a trace?")

    def get(self, name: str, kind: type[Kind], default: Any = None) -> Kind:
        value = self._fields.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(f"needs '{name}' as {kind.__name__}", value)
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.wrong(f"has half a character in '{name}'", ascii(value)) from None
        return value

    def count(self, name: str, least: int = 0) -> int:
        value = self.get(name, int)
        if not least <= value < 2**64:
            raise self.wrong(f"needs '{name}' as a whole number of at least {least}", value)
        return value

    def number(self, name: str) -> float:
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"needs '{name}' as a number", value)
        if not 0 <= value < 1e9:
            raise self.wrong(f"needs '{name}' as a number from 0 to 1e9", value)
        return float(value)

    def flag(self, name: str) -> bool:
        return self.get(name, bool)

    def ids(self, name: str) -> tuple[int, ...]:
        values = self.get(name, list)
        if not all(type(value) is int and 0 <= value < 2**31 for value in values):
            raise self.wrong(f"needs '{name}' as a list of token ids", values)
        return tuple(values)

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self.get(name, list)
        good = all(type(value) in (int, float) and 0 <= value < MAX_NATS for value in values)
        if not good:
            raise self.wrong(f"needs '{name}' as a list of numbers from 0", values)
        return tuple(map(float, values))

    def flags(self, name: str) -> tuple[bool, ...]:
        value = self.get(name, str)
        if set(value) - {"0", "1"}:
            raise self.wrong(f"needs '{name}' as a text of 0 and 1", value)
        return tuple(flag == "1" for flag in value)

    def words(self) -> Iterator[tuple[int, Token]]:
        for number, word in self.get("words", dict, {}).items():
            known = isinstance(word, list) and len(word) == 2 and word[0] in KINDS
            if not known or not isinstance(word[1], str) or not _is_id(number):
                raise self.wrong("needs 'words' as {id: [kind, text]}", {number: word})
            yield int(number), Token(word[0], clean(word[1]))

    def pieces(self) -> Iterator[tuple[str, float]]:
        for piece in self.get("pieces", list):
            if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str):
                raise self.wrong("needs 'pieces' as a list of [text, nats]", piece)
            if type(piece[1]) not in (int, float) or not 0 <= piece[1] < MAX_NATS:
                raise self.wrong("needs 'pieces' with nats from 0", piece)
            yield piece[0], float(piece[1])


class _Reader:
    """Takes lines in their order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._about: About | None = None
        self._events: list[Event] = []
        self._tokens: dict[int, Token] = {}
        self._before: tuple[int, ...] = ()
        self._cells = self._left_out = 0
        self._steps = False  # since the last commit

    def take(self, line: _Line) -> None:
        kind = line.get("kind", str)
        if (kind == "run") != (self._about is None):
            raise line.wrong("must be a trace's first line if, and only if, of kind 'run'", kind)
        if self._events and isinstance(self._events[-1], Finished):
            raise line.wrong("stands behind the end", kind)
        self._tokens.update(line.words())
        match kind:
            case "run":
                self._about = _about(line)
            case "draft":
                self._before = self._known(line, line.ids("tokens"))
            case "step":
                self._events.append(self._refined(line))
                self._steps = True
            case "commit" if self._steps:
                self._events.append(self._committed(line))
                self._before, self._steps = (), False
            case "end" if self._events and not self._steps:
                self._events.append(Finished(reply=_reply(line)))
                self._left_out = line.count("left_out")
            case _:
                raise line.wrong("must be of a kind that can stand here", kind)

    def trace(self) -> Trace:
        if self._about is None or not self._events or not isinstance(self._events[-1], Finished):
            raise InputError(f"'{self._name}' has no end line, so it is no whole trace; record it")
        return Trace(
            about=self._about,
            events=tuple(self._events),
            tokens=self._tokens,
            left_out=self._left_out,
        )

    def _known(self, line: _Line, ids: tuple[int, ...]) -> tuple[int, ...]:
        unknown = next((number for number in ids if number not in self._tokens), None)
        if unknown is not None:
            raise line.wrong("shows a token that no 'words' explains", unknown)
        return ids

    def _refined(self, line: _Line) -> Refined:
        step = Refined(
            canvas=line.count("canvas"),
            step=line.count("step", 1),
            best=self._known(line, line.ids("best")),
            entropy=line.numbers("entropy"),
            accepted=line.flags("accepted"),
            revised=line.flags("revised"),
            temperature=line.number("temperature"),
            before=self._before,
            after=self._known(line, line.ids("after")),
        )
        rows = (step.entropy, step.accepted, step.revised, step.before, step.after)
        if not step.best or any(len(row) != len(step.best) for row in rows):
            sizes = ", ".join(str(len(row)) for row in (step.best, *rows))
            raise line.wrong("needs lists of one length, after a draft of that length", sizes)
        last = self._events[-1] if self._steps else step
        if isinstance(last, Refined) and len(last.best) != len(step.best):
            raise line.wrong("is wider or narrower than the step before", len(step.best))
        self._cells += len(step.best)
        if self._cells > 2 * LIMIT:  # the last steps of canvases beyond the limit are kept, too
            raise InputError(f"'{self._name}' holds more than {2 * LIMIT:,} positions times steps")
        self._before = step.after
        return step

    def _committed(self, line: _Line) -> Committed:
        tokens = self._known(line, line.ids("tokens"))
        return Committed(
            canvas=line.count("canvas"),
            tokens=tokens,
            text=line.get("text", str),
            thought=line.get("thought", str, ""),  # traces of before have none
        )


def _about(line: _Line) -> About:
    if line.get("format", int) != FORMAT:
        raise line.wrong(f"must be of format {FORMAT}", line.get("format", int))
    versions = line.get("versions", dict)
    return About(
        model=line.get("model", str),
        prompt=line.get("prompt", str),
        seed=line.count("seed"),
        options=line.get("options", dict),
        device=line.get("device", str),
        versions={name: str(version) for name, version in versions.items()},
    )


def _reply(line: _Line) -> Reply:
    stats = _Line(line.where, json.dumps(line.get("stats", dict)))
    calls: list[ToolCall] = []
    for call in line.get("tool_calls", list):
        one = _Line(line.where, json.dumps(call))
        calls.append(ToolCall(one.get("name", str), one.get("arguments", dict)))
    return Reply(
        text=line.get("text", str),
        thought=None if line.get("thought", object) is None else line.get("thought", str),
        tool_calls=tuple(calls),
        tokens=line.ids("tokens"),
        finish_reason=line.get("finish_reason", str),
        stats=_stats(stats),
        pieces=tuple(line.pieces()),
    )


def _stats(line: _Line) -> Stats:
    """By the kinds of the fields; rates that stand beside them are computed, not read."""
    kinds = {int: line.count, float: line.number, tuple[int, ...]: line.ids}
    known = {one.name: kinds.get(one.type, line.flag)(one.name) for one in fields(Stats)}
    stats = Stats(**known)
    if not stats.steps or 0 in stats.steps:
        raise line.wrong("needs the steps, at least one, of at least one canvas", stats.steps)
    return stats


def _no_number(text: str) -> NoReturn:
    raise InputError(f"{text} is no number in JSON")


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inside), default=0)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10
