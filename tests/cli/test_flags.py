"""The command line speaks one language: a flag is the same in every verb, and in one table."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest

from diffusiongemma.cli.flags import FLAGS, GONE, flag_of, settled
from diffusiongemma.cli.verbs import VERBS, module
from diffusiongemma.core.errors import OptionError
from diffusiongemma.diffusion.config import HELP, SamplerConfig

Refused = Callable[..., str]
SAMPLING = {flag_of(field.name)[2:]: field.name for field in fields(SamplerConfig)}


def actions(verb: str) -> Iterator[tuple[str, argparse.Action]]:
    """Each flag of a verb by its long name."""
    for action in module(verb).parser().whole()._actions:
        if action.option_strings:
            yield action.option_strings[-1].removeprefix("--"), action


@pytest.mark.parametrize("verb", VERBS)
def test_a_flag_means_the_same_in_every_verb(verb: str) -> None:
    """Spelling, form of value, and the beginning of the help are the table's."""
    for name, action in actions(verb):
        if name in SAMPLING:
            assert action.option_strings == [f"--{name}"] and action.metavar in ("N", "X")
            assert action.help and action.help.startswith(HELP[SAMPLING[name]])
            continue
        flag = FLAGS[name]
        short = [f"-{flag.short}"] if flag.short else []
        assert action.option_strings == [*short, f"--{name}"]
        assert action.help and action.help.startswith(flag.help.replace("%", "%%"))
        assert action.metavar == flag.metavar
        assert (action.nargs == 0) is (flag.metavar is None), "a switch takes nothing"
        one = "?" if flag.optional else None
        assert action.nargs in (0, one), "a flag takes one word at most"


def test_no_flag_is_there_for_nothing_and_none_hides_another() -> None:
    used = {name for verb in VERBS for name, _ in actions(verb)}
    assert used == set(FLAGS) | set(SAMPLING)
    assert not set(FLAGS) & set(SAMPLING)
    short = [flag.short for flag in FLAGS.values() if flag.short]
    assert len(short) == len(set(short))
    assert not {flag[2:] for flag in GONE} & used


def test_what_all_verbs_have() -> None:
    for verb in VERBS:
        found = {name for name, _ in actions(verb)}
        assert found >= {"help", "version", "debug"}
        if verb != "completion":
            assert found >= {"model", "json"}, verb
        assert ("option" in found) is (set(SAMPLING) <= found) is bool(set(SAMPLING) & found)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["-o", "t_max", "0.5", "x"], ["-o", "t_max=0.5", "x"]),
        (["-o", "t_max=0.5", "x"], ["-o", "t_max=0.5", "x"]),
        (["--option", "t_max", "0.5"], ["--option", "t_max=0.5"]),
        (["-o", "t_max"], ["-o", "t_max"]),
        (["-o", "a", "1", "-o", "b", "2"], ["-o", "a=1", "-o", "b=2"]),
        (["-s", "-o", "a", "b"], ["-s", "-o", "a", "b"]),
        (["--", "-o", "a", "b"], ["--", "-o", "a", "b"]),
        (["--json", "x"], ["--json", "x"]),
        (["chat", "--continue=x.json"], ["chat", "--continue=x.json"]),
        (["--json", "what is a.json"], ["--json", "what is a.json"]),
    ],
)
def test_an_option_may_be_two_words(given: list[str], wanted: list[str]) -> None:
    assert settled(given) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trace", "--svg", "a.svg", "x"], "there is no --svg any more; write --out FILE.svg"),
        (["trace", "--strip=a.svg"], "write --out FILE.svg --picture strip"),
        (["trace", "x", "--output", "a.html"], "write --out FILE.html"),
        (["trace", "x", "-o", "a.html"], "got 'a.html'; a file is written with --out"),
        (
            ["trace", "x", "--json", "a.jsonl"],
            "prints on standard output; for a file: --out a.jsonl",
        ),
        (["bench", "--json=a"], "prints on standard output; for a file: --out a"),
        (["evaluate", "--records", "a"], "there is no --records any more; write --out FILE"),
        (["quantize", "--out", "a", "--problems", "3"], "write --count N"),
        (["quantize", "a b"], "the folder to write is --out 'a b', the model -m 'a b'"),
        (["bench", "--batch", "1", "8"], "repeat the flag, as in --batch 1 --batch 8"),
        (["--think=yes", "x"], "--think is a switch and takes no value, got 'yes'; omit it"),
    ],
)
def test_a_spelling_that_is_gone_names_the_new_one(
    given: list[str], said: str, refused: Refused
) -> None:
    assert said in refused(*given)


NUMBERS = [
    (verb, name, action)
    for verb in VERBS
    for name, action in actions(verb)
    if action.metavar == "N" and name not in SAMPLING and not action.choices
]


@pytest.mark.parametrize("number", ["-1", "9" * 40, "9" * 5000, "1.5", "many", ""])
@pytest.mark.parametrize(("verb", "name", "action"), NUMBERS, ids=lambda part: str(part)[:12])
def test_a_number_out_of_range_is_one_sentence(
    verb: str, name: str, action: argparse.Action, number: str, refused: Refused
) -> None:
    said = refused(verb, f"--{name}={number}")
    assert said.startswith(f"--{name}: must be a whole number from ") and len(said) < 200


def test_flags_of_sampling_refuse_what_no_process_can_do(refused: Refused) -> None:
    for name in SAMPLING:
        for number in ("-1", "9" * 40, "nan", "inf", "many"):
            said = refused("x", f"--{name}={number}", "-m", "nowhere")
            assert SAMPLING[name] in said and len(said) < 200


def test_the_settled_words_refuse_only_flags() -> None:
    assert settled(["-s", "--svg", "x"]) == ["-s", "--svg", "x"]
    with pytest.raises(OptionError):
        settled(["x", "--svg"])
