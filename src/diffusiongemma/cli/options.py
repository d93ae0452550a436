"""A verb's parser: flags from the one table, complaints in this project's words.

The flags of sampling, their types, defaults and help come from the fields of `SamplerConfig`.
"""

import argparse
import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from types import NoneType
from typing import Any, NoReturn, get_args

from diffusiongemma import __version__
from diffusiongemma.cli.flags import FLAGS, Flag, flag_of
from diffusiongemma.cli.verbs import VERBS, module
from diffusiongemma.core.errors import OptionError, unknown_name
from diffusiongemma.core.letters import brief
from diffusiongemma.diffusion.config import HELP, SamplerConfig

Group = argparse._ArgumentGroup


class Parser(argparse.ArgumentParser):
    """A parser with what every verb has: --help, --version, --debug.

    Args:
        verb: its name.
        usage: how it is called, after the verb.
        about: what it does.
        after: what is printed after the flags.
        stray: what to do about a word too many, in which `{word}` stands for it.
    """

    def __init__(
        self,
        verb: str,
        usage: str,
        about: str,
        after: str = "",
        *,
        stray: str = "put a prompt in quotes, all of it",
    ) -> None:
        super().__init__(
            prog="diffusiongemma",
            usage=usage,
            description=about,
            epilog=after,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.verb, self._stray = verb, stray

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Every flag that it takes, by its spelling."""
        return self._option_string_actions

    def whole(self) -> "Parser":
        """Itself, after the flags of all verbs have come to its own; to be asked for once."""
        others = self.add_argument_group("other")
        take(others, "help", action="help")
        take(others, "version", action="version", version=f"diffusiongemma {__version__}")
        take(others, "debug")
        return self

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the words of a command, without the verb.

        Raises:
            OptionError: a word that is not understood.
        """
        found, rest = self.whole().parse_known_args(words)
        for word in rest:
            if word.startswith("-"):
                raise OptionError(self._unknown(word.partition("=")[0]))
        if rest:
            word, hint = brief(rest[0]), self._stray.format(word=shlex.quote(rest[0]))
            raise OptionError(f"{word} is one word too many; {hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with the whole usage."""
        raise OptionError(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices; argparse would list them, and name no near one."""
        if action.choices is not None and value not in action.choices:
            raise OptionError(
                unknown_name(action.dest.replace("_", " "), str(value), map(str, action.choices))
            )

    def _unknown(self, flag: str) -> str:
        """The sentence for a flag that this verb does not take: who takes it, or what is near."""
        have = [verb for verb in VERBS if flag in module(verb).parser().flags]
        if have:
            some = " and ".join([", ".join(have[:-1]), have[-1]] if have[1:] else have)
            return f"{self.verb} has no {flag}; it belongs to {some}"
        return unknown_name("option", flag, [one for one in self.flags if one.startswith("--")])


def take(
    group: argparse._ActionsContainer,
    name: str,
    *,
    default: Any = None,
    usual: str = "",
    more: str = "",
    many: bool = False,
    choices: Sequence[object] = (),
    least: int | None = None,
    **rest: Any,
) -> None:
    """Give a verb a flag of the table.

    Args:
        group: of the verb's parser.
        name: of the flag, without dashes.
        default: what counts where it is not given; of a flag that repeats, an empty list.
        usual: the default in words, for the help, where it is none of `default`.
        more: what this verb adds to the help, with its comma.
        many: it may be repeated, and gives a list.
        choices: the values that this verb knows.
        least: of a whole number, where this verb needs more than the table asks for.
        **rest: for argparse.
    """
    flag = FLAGS[name]
    choices = tuple(choices or flag.choices)
    known = f": {', '.join(map(str, choices))}" if choices else ""
    usual = usual or ("" if default is None else str(default))
    about = flag.help + more + known
    marks = "; ".join(mark for mark in (usual, "repeatable" if many else "") if mark)
    rest["help"] = (f"{about} ({marks})" if marks else about).replace("%", "%%")
    if flag.metavar is None:
        rest.setdefault("action", "store_true")
    else:
        rest |= {"metavar": flag.metavar, "default": [] if many else default}
        rest.setdefault("type", _whole(flag, least) if flag.metavar == "N" else str)
        rest |= {"choices": choices} if choices else {}
        rest |= {"action": "append"} if many else {}
        rest |= {"nargs": "?", "const": ""} if flag.optional else {}
    if flag.dest:
        rest["dest"] = flag.dest
    short = (f"-{flag.short}",) if flag.short else ()
    group.add_argument(*short, f"--{name}", **rest)


def add_model(parser: Parser) -> Group:
    """Add -m and how to fetch what it names."""
    group = parser.add_argument_group("the model")
    take(group, "model", usual="the small model inside the package")
    take(group, "revision")
    return group


def add_opened_model(parser: Parser) -> None:
    """Add -m, and how the checkpoint is opened; `asking.open_model` reads them."""
    group = add_model(parser)
    for name in ("offline", "device", "dtype"):
        take(group, name)


def add_sampling(parser: Parser) -> None:
    """Add a flag for each field of `SamplerConfig`, and -o for all; they end up in `sampling`."""
    group = parser.add_argument_group(
        "sampling", "Defaults are the checkpoint's own; where it has none, those in parentheses."
    )
    about = FLAGS["option"]
    group.add_argument(
        *("-o", "--option"),
        action=_Sampling,
        metavar=about.metavar,
        help=f"{about.help} (repeatable)",
    )
    for field in fields(SamplerConfig):
        default = "" if field.default is None else f" ({field.default})"
        group.add_argument(
            flag_of(field.name),
            action=_Sampling,
            const=field.name,
            metavar="N" if int in _kinds(field) else "X",
            help=HELP[field.name].replace("%", "%%") + default,
        )
    parser.set_defaults(sampling={})


def check_sampling(sampling: dict[str, Any]) -> None:
    """Refuse, before a model is loaded, what no checkpoint's defaults could make right.

    Raises:
        OptionError: an unknown name, or a value out of range.
    """
    # A bound on one temperature is judged against the other, which the checkpoint may set.
    SamplerConfig(t_min=0.0, t_max=999_999.0).with_options(**sampling)


def _whole(flag: Flag, least: int | None) -> Callable[[str], int]:
    """What reads a whole number in a flag's range, for argparse."""
    least = flag.least if least is None else least

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= flag.most:
            wanted = f"a whole number from {least:,} to {flag.most:,}"
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {brief(text)}")
        return number

    return read


class _Sampling(argparse.Action):
    """Collects sampling options; of two for one name, the later counts."""

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, "sampling", default={}, **rest)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        name, text = self.const, values
        if name is None:
            name, equals, text = values.partition("=")
            name = name.replace("-", "_")
            if not equals:
                raise argparse.ArgumentError(
                    self, f"must be NAME=VALUE or NAME VALUE, got {brief(values)}"
                )
            if name not in HELP and flag_of(name) in parser.flags:
                raise argparse.ArgumentError(
                    self, f"{brief(name)} is no sampling option; write {flag_of(name)} {text}"
                )
        namespace.sampling = {**namespace.sampling, name: _typed(name, text)}


def _typed(name: str, text: str) -> Any:
    """The value in its field's type; a text that has no such value stays, and the field refuses."""
    field = next((field for field in fields(SamplerConfig) if field.name == name), None)
    kinds = () if field is None else _kinds(field)
    if NoneType in kinds and text.lower() == "none":
        return None
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def _kinds(field: Field[Any]) -> tuple[Any, ...]:
    return get_args(field.type) or (field.type,)
