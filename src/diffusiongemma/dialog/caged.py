"""The inside of the cage: a chat template compiled and rendered, in a process of its own.

Knows jinja2 and how transformers sets it up, since templates are written for that, and how a
process limits itself. `cage.py` starts it in an isolated Python, so it imports nothing else of this
package. A message either way is four bytes of length and then JSON; an answer is a kind and a text.
"""

import contextlib
import gc
import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from types import NoneType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Answer = tuple[str, str]

# What imports its module late must do so before no file can be opened any more.
_WARM_UP = (
    """{% set \u00e9 = '\\n' | pprint | wordwrap | striptags %}{{ raise_exception(\u00e9) }}"""
)

_PLAIN = frozenset([bool, int, float, str, list, dict, NoneType])
_QUOTED = 500  # letters of an error, which may hold all of a conversation


class Renderer:
    """One template, compiled and rendered without limits on time or memory.

    Args:
        source: its text.

    Attributes:
        compiled: `ready`, or why it cannot be rendered: `syntax`, `broken` or `memory`.
    """

    def __init__(self, source: str) -> None:
        self._template = None
        try:
            self._template = _Environment().from_string(source)
            self.compiled: Answer = ("ready", "")
        except TemplateSyntaxError as error:
            self.compiled = ("syntax", f"line {error.lineno}: {error.message}"[:_QUOTED])
        except MemoryError:
            self.compiled = ("memory", "")
        except Exception as error:  # constants are folded, and folding can raise anything
            self.compiled = ("broken", _quote(error))

    def render(self, asked: Mapping[str, Any]) -> Answer:
        """The text for some variables, or why there is none.

        Args:
            asked: `variables` by name; `characters` that the text may have; `now`, local time.
        """
        if self._template is None:
            return self.compiled
        now = datetime.fromisoformat(asked["now"])
        pieces, left = [], asked["characters"]
        try:
            for piece in self._template.generate(asked["variables"], strftime_now=now.strftime):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    return "size", ""
            return "text", "".join(pieces)
        except _RefusedError as error:
            return "refused", str(error.message)[:_QUOTED]
        except SecurityError as error:
            return "forbidden", str(error)[:_QUOTED]
        except MemoryError:
            return "memory", ""
        except Exception as error:  # a template can raise anything that an expression can
            return "failed", _quote(error)


class _RefusedError(TemplateError):
    """The template itself called `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Set up as transformers does."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _tojson
        self.globals.pop("lipsum", None)  # words at random, and the way into many a sandbox
        self.globals["raise_exception"] = _raise_exception

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does, but quick for plain values in a namespace.

        Templates look over the whole history at each message and keep the outcome there. What the
        sandbox asks of such a look-up took four fifths of the time of a long conversation.
        """
        if type(obj) is Namespace and not attribute.startswith("_"):
            value = getattr(obj, attribute, self)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)


def _raise_exception(message: str) -> None:
    raise _RefusedError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, unlike the filter of the same name that jinja2 has."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _quote(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_QUOTED]


def main() -> None:
    """Answer on the standard streams until they close."""
    first = _receive()
    if first is None:
        return
    Renderer(_WARM_UP).render({"variables": {}, "now": "2000-01-01", "characters": 0})
    gc.freeze()
    _send(("hello", " ".join(_lock(first["megabytes"]))))
    _start_clock(first["seconds"])
    renderer = Renderer(first["source"])
    _stop_clock()
    _send(renderer.compiled)
    while (asked := _receive()) is not None:
        _start_clock(asked["seconds"])
        answer = renderer.render(asked)
        _stop_clock()
        _send(answer)


def _lock(megabytes: int) -> list[str]:
    """Give up what a template never needs; the limits that now hold: `memory`, `time`."""
    if not hasattr(signal, "setitimer"):  # Windows
        return []
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whatever was inherited: the clock's end is ours
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    size = megabytes << 20
    for name, most in (("CORE", 0), ("FSIZE", 0), ("NOFILE", 0), ("NPROC", 0), ("AS", size)):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    try:
        mmap.mmap(-1, size).close()  # macOS takes the limit and does not keep it
        return ["time"]
    except (OSError, MemoryError):
        return ["memory", "time"]


def _start_clock(seconds: float) -> None:
    """Have the system end this process once it has used so much more processor time."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _stop_clock() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)


def _receive() -> dict[str, Any] | None:
    head = sys.stdin.buffer.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    return json.loads(sys.stdin.buffer.read(size))


def _send(answer: Answer) -> None:
    body = json.dumps(answer).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(body)) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
    os._exit(0)
