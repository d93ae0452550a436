"""The examples run, and are short."""

import runpy
import sys
from pathlib import Path

import pytest

from cli_help import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "custom_rule": "margin of 32: [",
    "generate": "tokens per forward, because: ",
    "many": "alone, the second one is the same",
    "steps": "tokens are the same after the canvas was turned around",
    "stream": "steps of each canvas: (",
}


def test_they_are_all_known() -> None:
    assert {file.stem for file in EXAMPLES} >= set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example(
    name: str, words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "examples" / f"{name}.py"
    assert len(file.read_text().splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(file), str(words)])
    runpy.run_path(str(file), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
