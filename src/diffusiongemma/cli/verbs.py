"""The verbs, and which of them a command means.

Knows their names and what other tools call theirs; each verb's module knows its own flags and work.
"""

import difflib
import importlib
import re
from collections.abc import Sequence
from types import ModuleType

from diffusiongemma.cli.flags import positions, settled
from diffusiongemma.core.errors import OptionError

USUAL = "run"  # it goes without saying
VERBS = {
    "run": "answer a prompt; the verb may be left out",
    "chat": "a conversation, as the canvas refines",
    "trace": "a page that replays how an answer came about",
    "evaluate": "how many held-out problems it solves",
    "quantize": "its weights in eight bits, and what that costs",
    "bench": "how fast it is, beside transformers",
    "doctor": "what this machine can run, and why",
    "completion": "a script that completes flags in your shell",
}
HELP = "help"
_ALL = [*VERBS, HELP]

# What does here -> what other tools call it; under no name, what nothing does here. A word alone
# that is one of these was hardly meant as a prompt.
_ELSEWHERE = {
    "run": "ask complete generate infer predict prompt sample",
    "chat": "converse interactive repl talk",
    "trace": "draw plot record replay",
    "evaluate": "eval score test",
    "quantize": "compress convert quant",
    "bench": "benchmark perf profile time",
    "doctor": "check diagnose info inspect show status verify",
    "completion": "autocomplete completions",
    "help": "man usage",
    "--version": "version",
    "": "api cache clean config create delete deploy distill download embed export fetch fine-tune "
    "finetune gui import init install list load login logout ls merge model models ps pull push "
    "remove rm save serve server start stop tokenize train ui uninstall update upgrade upload web",
}
_HERE = {word: here for here, words in _ELSEWHERE.items() for word in words.split()}


def module(verb: str) -> ModuleType:
    """The module of a verb: `parser` and `run`."""
    return importlib.import_module(f"diffusiongemma.cli.{verb}")


def meant(words: Sequence[str]) -> tuple[str, list[str]]:
    """Which verb a command means, and the words that are left for it.

    The verb is the first word that is neither a flag nor a flag's value. Where that is none of the
    verbs, it is a prompt, unless it looks like a verb.

    Raises:
        OptionError: it looks like a verb and is none, or a flag is spelled as it no longer is.
    """
    left = settled(words)
    place = next(positions(left), None)
    if place is None:
        return USUAL, left
    word = left[place]
    if word in VERBS or word == HELP:
        del left[place]
        return (word, left) if word in VERBS else _helped(left)
    near = _near(word)
    if near is not None:
        raise OptionError(
            f"there is no verb '{word}'; {near} As a prompt it is: diffusiongemma run {word}"
        )
    return USUAL, left


def _helped(words: list[str]) -> tuple[str, list[str]]:
    place = next(positions(words), None)
    verb = USUAL if place is None or words[place] == HELP else words[place]
    if verb not in VERBS:
        raise OptionError(f"there is no verb '{verb}'; {_near(verb) or _KNOWN}")
    return verb, ["--help"]


_KNOWN = f"the verbs are {', '.join(_ALL)}."


def _near(word: str) -> str | None:
    """A hint, if a word looks like a verb: small letters, near to a verb or one of another tool."""
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*", word):
        return None
    if word in _HERE:
        return f"did you mean '{_HERE[word]}'?" if _HERE[word] else _KNOWN
    # Of the verb's letters, four of five; `hello` has three of `help`.
    found = difflib.get_close_matches(word, _ALL, n=1, cutoff=0.8)
    return f"did you mean '{found[0]}'?" if found else None
