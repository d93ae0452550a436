"""The verb `completion`: a script with which a shell completes verbs and flags.

Knows how the verbs' parsers become one tree; the scripts are shtab's.
"""

import argparse
from collections.abc import Sequence

import shtab

from diffusiongemma.cli.options import Parser
from diffusiongemma.cli.output import check_open, say
from diffusiongemma.cli.verbs import HELP, USUAL, VERBS, module
from diffusiongemma.core.errors import OptionError

USAGE = "diffusiongemma completion SHELL"
ABOUT = "Print a script that completes verbs, flags, names and files."
AFTER = """\
examples:
  eval "$(diffusiongemma completion bash)"               in ~/.bashrc
  diffusiongemma completion zsh > ~/.zfunc/_diffusiongemma
  diffusiongemma completion fish > ~/.config/fish/completions/diffusiongemma.fish
"""
_FILES = {"FILE": shtab.FILE, "PATH": shtab.FILE, "FOLDER": shtab.DIRECTORY}


def parser() -> Parser:
    """The flags of this verb."""
    made = Parser("completion", USAGE, ABOUT, AFTER, stray="name one shell")
    shells = shtab.SUPPORTED_SHELLS
    about = ", ".join(shells)
    made.add_argument("shell", nargs="?", metavar="SHELL", choices=shells, help=about)
    return made


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    check_open()
    if args.shell is None:
        raise OptionError(f"no shell is named; name one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    say(shtab.complete(_tree(), shell=args.shell).rstrip())
    return 0


def _tree() -> argparse.ArgumentParser:
    """One parser of which every verb's is a part, and the usual verb's flags are the trunk."""
    made = argparse.ArgumentParser(prog="diffusiongemma", add_help=False)
    for action in _actions(USUAL):
        if action.option_strings:  # a prompt cannot be completed; what stands there may be a verb
            made._add_action(action)
    parts = made.add_subparsers()
    for verb, about in VERBS.items():
        part = parts.add_parser(verb, help=about, add_help=False)
        for action in _actions(verb):
            part._add_action(action)
    parts.add_parser(HELP, help="how a verb is used").add_argument("verb", choices=list(VERBS))
    return made


def _actions(verb: str) -> Sequence[argparse.Action]:
    found = module(verb).parser().whole()._actions
    for action in found:
        if action.metavar in _FILES:
            action.complete = _FILES[action.metavar]  # where shtab looks for it
    return found
