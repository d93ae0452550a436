"""The examples run, and are short."""

import re
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


def test_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe it has no pace."""
    naps = list[float]()
    monkeypatch.setattr("diffusiongemma.cli.watching.time.sleep", naps.append)
    file = ROOT / "examples" / "demo.py"
    monkeypatch.setattr(sys, "argv", [str(file), "3"])
    runpy.run_path(str(file), run_name="__main__")
    assert "of 7 right, " in capsys.readouterr().out and naps == []
    monkeypatch.setattr(sys, "argv", [str(file), "3", "--pace", "0.5"])
    runpy.run_path(str(file), run_name="__main__")
    steps = re.findall(r"^  step ", capsys.readouterr().out, re.MULTILINE)
    assert len(naps) == len(steps) - 1 and 0 < min(naps) <= max(naps) <= 0.5
