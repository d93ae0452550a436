"""Options of a verb: a parser that complains in this project's words, and sampling flags.

The flags, their types, defaults and help come from the fields of `SamplerConfig`.
"""

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import Field, fields
from types import NoneType
from typing import Any, NoReturn, get_args

from diffusiongemma import __version__
from diffusiongemma.core.errors import OptionError, unknown_name
from diffusiongemma.diffusion.config import HELP, SamplerConfig


class Parser(argparse.ArgumentParser):
    """A parser with what every verb has: --help, --version, --debug.

    Args:
        usage: how the verb is called.
        about: what it does.
        after: what is printed after the options.
    """

    def __init__(self, usage: str, about: str, after: str = "") -> None:
        super().__init__(
            prog="diffusiongemma",
            usage=usage,
            description=about,
            epilog=after,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the words of a command.

        Raises:
            OptionError: a word that is not understood.
        """
        others = self.add_argument_group("other")
        others.add_argument("-h", "--help", action="help", help="print this and exit")
        version = f"diffusiongemma {__version__}"
        others.add_argument(
            "--version", action="version", version=version, help="print the version and exit"
        )
        others.add_argument("--debug", action="store_true", help="show where an error came from")
        found, rest = self.parse_known_args(words)
        for word in rest:
            if word.startswith("-"):
                flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
                raise OptionError(unknown_name("option", word.partition("=")[0], flags))
        if rest:
            raise OptionError(
                f"'{rest[0]}' is one word too many; put a prompt in quotes, all of it"
            )
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with the whole usage."""
        raise OptionError(message.removeprefix("argument "))


def add_model(parser: Parser) -> argparse._ArgumentGroup:
    """Add -m and how to fetch what it names."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        *("-m", "--model"),
        metavar="FOLDER",
        help="a checkpoint's folder, or a hub id: owner/name (the small model inside the package)",
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    return group


def add_opened_model(parser: Parser) -> None:
    """Add -m, and how the checkpoint is opened; `asking.open_model` reads them."""
    group = add_model(parser)
    group.add_argument("--offline", action="store_true", help="take nothing from the network")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N")
    group.add_argument("--dtype", metavar="NAME", help="bfloat16, float32 or float16")


def add_sampling(parser: Parser, *, short: bool = True) -> None:
    """Add a flag for each field of `SamplerConfig`, and -o NAME=VALUE; they end up in `sampling`.

    Args:
        parser: of a verb.
        short: whether -o is free for this.
    """
    group = parser.add_argument_group(
        "sampling", "Defaults are the checkpoint's own; where it has none, those in parentheses."
    )
    if short:
        group.add_argument(
            "-o", action=_Sampling, metavar="NAME=VALUE", help="any of these by name (repeatable)"
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


def flag_of(name: str) -> str:
    """`max_new_tokens` -> `--max-new-tokens`."""
    return "--" + name.replace("_", "-")


def whole(text: str) -> int:
    """A whole number, for argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got '{text}'") from None


class _Sampling(argparse.Action):
    """Collects sampling options; of two for one name, the later counts."""

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, "sampling", default={}, **rest)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        name, text = self.const, values
        if name is None:
            name, equals, text = values.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"must be NAME=VALUE, got '{values}'")
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
