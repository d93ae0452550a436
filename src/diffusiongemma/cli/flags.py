"""The flags of all verbs: one name, one meaning, one form of value.

A verb picks from this table; what it may add is its own default and a remark. Knows also how words
become flags, values and prompts, and the spellings that are gone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief
from diffusiongemma.diffusion.config import HELP


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag.

    Attributes:
        help: what it means, in every verb.
        metavar: what stands for its value, `N` for a whole number; None: a switch without one.
        short: its form of one letter.
        least: of a whole number.
        most: of a whole number.
        choices: its values, where there are few.
        optional: it may go without its value.
        dest: what it is called in code, where its own name is a word of Python.
    """

    help: str
    metavar: str | None = None
    short: str = ""
    least: int = 1
    most: int = 1_000_000
    choices: tuple[str, ...] = ()
    optional: bool = False
    dest: str = ""


FLAGS = {
    # which model, and where it computes
    "model": Flag("a checkpoint's folder, or a hub id: owner/name", "FOLDER", "m"),
    "revision": Flag("branch, tag or commit on the hub", "REV"),
    "offline": Flag("take nothing from the network"),
    "device": Flag("cpu, cuda or cuda:N", "NAME"),
    "dtype": Flag("bfloat16, float32 or float16", "NAME"),
    "threads": Flag("threads of torch", "N", most=1024),
    # what is asked
    "system": Flag("a system message", "TEXT", "s"),
    "image": Flag("a picture", "FILE", "i"),
    "image-tokens": Flag("how finely pictures are seen", "N"),
    "guard": Flag("read control tokens that a prompt spells as letters"),
    "think": Flag("think before answering"),
    "tools": Flag("JSON: a list of tools it may call", "FILE"),
    "ids": Flag("the prompt is token ids, and so is the answer"),
    "seed": Flag("same seed, same answers", "N", least=0, most=2**64 - 1),
    "stop": Flag("end an answer before this", "TEXT"),
    "option": Flag("any sampling option by name; NAME VALUE works too", "NAME=VALUE", "o"),
    "continue": Flag(
        "go on with a conversation that /save wrote; without FILE, with the last one",
        "FILE",
        "c",
        optional=True,
        dest="go_on",
    ),
    "private": Flag("keep nothing of a conversation for -c"),
    # problems
    "task": Flag("which problems", "NAME"),
    "count": Flag("problems of each kind", "N", least=0, most=100_000),
    "batch": Flag("prompts answered together", "N", most=65_536),
    "wrong": Flag("show the first N failures of a task", "N", least=0),
    # traces
    "from": Flag("draw this trace; no model is needed", "FILE", dest="source"),
    "canvas": Flag("which canvas a picture shows", "N"),
    "picture": Flag(
        "whether an .svg moves, or is a strip of moments", "NAME", choices=("moving", "strip")
    ),
    # eight bits
    "format": Flag("of the weights", "NAME", choices=("fp8",)),
    "overwrite": Flag("replace a checkpoint that is there"),
    "no-damage": Flag("do not measure what it cost"),
    # measuring
    "context": Flag("tokens before the canvas", "N", most=10**9),
    "steps": Flag("steps of each canvas", "N", most=100_000),
    "canvases": Flag("canvases of an answer", "N", least=0, most=100_000),
    "rounds": Flag("turns of each side", "N", most=100_000),
    "alone": Flag("without transformers"),
    "quick": Flag("one small case"),
    "size": Flag("which network of random weights", "NAME"),
    "part": Flag("which part of the bench", "NAME"),
    # what is watched
    "pace": Flag("show each step of a canvas so long at least", "SECONDS"),
    "no-stats": Flag("leave out the line of figures after an answer"),
    # what comes out
    "json": Flag("print JSON, and nothing else, on standard output"),
    "out": Flag("write the result there", "PATH"),
    "help": Flag("print this and exit", short="h"),
    "version": Flag("print the version and exit"),
    "debug": Flag("show where an error came from"),
}
"""By name without dashes; the flags of sampling come from `SamplerConfig` beside them."""

GONE = {
    "--output": "--out FILE.html",
    "--svg": "--out FILE.svg",
    "--strip": "--out FILE.svg --picture strip",
    "--records": "--out FILE",
    "--problems": "--count N",
}
"""Spellings of before -> those of now."""

_SHORT = {f"-{flag.short}": name for name, flag in FLAGS.items() if flag.short}
_FILE = re.compile(r"\S+\.jsonl?", re.IGNORECASE)


def flag_of(name: str) -> str:
    """`max_new_tokens` -> `--max-new-tokens`."""
    return "--" + name.replace("_", "-")


def takes_value(flag: str) -> bool:
    """Whether the word after a flag is surely its value; of a flag that is none, it is not."""
    name = _SHORT.get(flag) or flag.removeprefix("--")
    if not flag.startswith("-") or (not flag.startswith("--") and flag not in _SHORT):
        return False
    found = FLAGS.get(name)
    if found is None:
        return name.replace("-", "_") in HELP
    return found.metavar is not None and not found.optional


def settled(words: Sequence[str]) -> list[str]:
    """The words of a command with `-o NAME VALUE` as `-o NAME=VALUE`.

    Raises:
        OptionError: a spelling that is gone.
    """
    made: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        made.append(word)
        if word == "--":
            return made + rest
        _refuse(word, rest[0] if rest else "")
        if not takes_value(word) or not rest:
            continue
        value = rest.pop(0)
        if word in ("-o", "--option") and "=" not in value and rest:
            value = f"{value}={rest.pop(0)}"
        made.append(value)
    return made


def positions(words: Sequence[str]) -> Iterator[int]:
    """Where in settled words there is one that is neither a flag nor its value; before `--`."""
    place = 0
    while place < len(words) and words[place] != "--":
        if takes_value(words[place]):
            place += 1
        elif not re.match(r"-\S", words[place]):
            yield place
        place += 1


def _refuse(word: str, following: str) -> None:
    flag, equals, value = word.partition("=")
    if flag in GONE:
        raise OptionError(f"there is no {flag} any more; write {GONE[flag]}")
    known = FLAGS.get(flag[2:]) if flag.startswith("--") else None
    file = following if word == "--json" and _FILE.fullmatch(following) else None
    if flag == "--json" and (equals or file):
        raise OptionError(
            f"--json is a switch and prints on standard output; for a file: --out {file or value}"
        )
    if known is not None and known.metavar is None and equals:
        raise OptionError(f"{flag} is a switch and takes no value, got '{value}'; omit it")
    if word in ("-o", "--option") and not re.fullmatch(r"[\w-]*(=.*)?", following, re.DOTALL):
        raise OptionError(
            f"-o is a sampling option, NAME=VALUE, got {brief(following)}; a file is written "
            "with --out"
        )
