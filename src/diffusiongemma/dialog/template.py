"""A checkpoint's chat template, run in a cage.

Knows jinja2 and how transformers sets it up, since templates are written for that. Does not know
messages or tokens.

A template is code from a stranger. It runs in jinja2's immutable sandbox, sees JSON values only,
and stops with an error after TIME_LIMIT seconds or SIZE_LIMIT characters. The limits catch endless
loops, repeated doubling and huge multiplications; they are not a prison for a determined attacker,
who would rather put his code elsewhere in a checkpoint.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.core.reading import find_json, read_text

SIZE_LIMIT = 16_000_000
"""Characters that a rendered prompt, or a text built on the way, may have."""

TIME_LIMIT = 10.0
"""Seconds that one rendering may take."""

_BIT_LIMIT = 4096
_TICK, _BOUND = "_tick", "_bound"


class _RefusedError(TemplateError):
    """The template itself called `raise_exception`."""


class _TooMuchError(Exception):
    """A limit of this file was passed."""


class Template:
    """One compiled template.

    Args:
        source: its text.
        name: where it came from, for messages.

    Raises:
        CheckpointError: it is not a template.
    """

    def __init__(self, source: str, name: str = "the chat template") -> None:
        self.name = name
        environment = _Environment()
        try:
            tree = _Guards().visit(environment.parse(source))
            tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"{name} is not a jinja template (line {error.lineno}: {error.message}); fetch "
                "the file again"
            ) from error
        except (RecursionError, TemplateError, SyntaxError) as error:
            raise CheckpointError(
                f"{name} cannot be compiled ({error}); fetch the file again"
            ) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables.

        Raises:
            InputError: the template refuses them, fails on them, or makes too much of them.
            CheckpointError: the template tries what the sandbox forbids.
        """
        deadline = time.monotonic() + TIME_LIMIT
        pieces, size = [], 0
        try:
            for piece in self._template.generate(**variables, **_guards(deadline)):
                pieces.append(piece)
                size += len(piece)
                if size > SIZE_LIMIT:
                    raise _TooMuchError(f"more than {SIZE_LIMIT} characters")
        except _RefusedError as error:
            raise InputError(f"{self.name} refuses these messages: {error.message}") from error
        except SecurityError as error:
            raise CheckpointError(
                f"{self.name} tries what a template may not ({error}); do not use this checkpoint "
                "unless you trust its source"
            ) from error
        except _TooMuchError as error:
            raise InputError(
                f"{self.name} was stopped at {error}; shorten the messages, or check the template"
            ) from error
        except Exception as error:  # a template can raise anything that an expression can
            raise InputError(
                f"{self.name} fails on these messages ({type(error).__name__}: {error}); check "
                "their roles and parts"
            ) from error
        return "".join(pieces)


def find_template(path: Path) -> Template | None:
    """The template of a checkpoint folder, or None.

    Of several named templates in `tokenizer_config.json`, the one called `default`.
    """
    file = Path(path) / "chat_template.jinja"
    source = read_text(file)
    if source is not None:
        return Template(source, str(file))
    file = Path(path) / "tokenizer_config.json"
    found = (find_json(file) or {}).get("chat_template")
    if found is None:
        return None
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        if "default" not in named:
            raise CheckpointError(
                f"{file} names the chat templates {sorted(map(str, named))} and none is called "
                "'default'; put the one to use into chat_template.jinja"
            )
        found = named["default"]
    if not isinstance(found, str):
        raise CheckpointError(
            f"chat_template in {file} is {type(found).__name__} and not a text; fetch the file "
            "again"
        )
    return Template(found, f"the chat template in {file}")


def special_names(path: Path) -> dict[str, str]:
    """Special tokens under the names that templates use, such as `bos_token`."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data = find_json(Path(path) / name) or {}
        extra = data.get("extra_special_tokens")
        for source in (extra if isinstance(extra, dict) else {}, data):
            for key, value in source.items():
                value = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(value, str):
                    found[key] = value
    return found


def _guards(deadline: float) -> dict[str, Callable[..., Any]]:
    def tick() -> str:
        if time.monotonic() > deadline:
            raise _TooMuchError(f"{TIME_LIMIT:g} seconds")
        return ""

    return {_TICK: tick, _BOUND: _bounded}


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and len(value) > SIZE_LIMIT:
        raise _TooMuchError(f"more than {SIZE_LIMIT} characters")
    return value


class _Guards(NodeTransformer):
    """Writes the checks into a parsed template: a clock in each loop and macro, a bound on `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._clocked(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._clocked(node)

    def _clocked(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call(_TICK)], lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(_BOUND, node)


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Set up as transformers does, with multiplication and its kin watched."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _tojson
        self.filters.pop("center", None)  # one number away from filling the memory
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and _size(left) + _size(right) > SIZE_LIMIT:
            raise _TooMuchError(f"more than {SIZE_LIMIT} characters")
        if operator == "*":
            times = right if isinstance(right, int) else left if isinstance(left, int) else 0
            if _size(left) * times > SIZE_LIMIT or _size(right) * times > SIZE_LIMIT:
                raise _TooMuchError(f"more than {SIZE_LIMIT} characters")
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole and left.bit_length() * right > _BIT_LIMIT:
            raise _TooMuchError(f"a power of more than {_BIT_LIMIT} bits")
        if operator == "%" and isinstance(left, str) and re.search(r"\d{6,}|\*", left):
            raise _TooMuchError("a format of huge width")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _raise_exception(message: str) -> None:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


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
