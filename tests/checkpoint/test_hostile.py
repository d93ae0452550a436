"""A few of the checkpoints that `hostile_folders.py` makes; thousands, when it is run by hand."""

import os
from pathlib import Path

import pytest

from hostile_folders import attempt, make


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes and devices")
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_opens_or_is_refused(first: int, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    said = []
    for seed in range(first, first + 20):
        make(tmp_path / f"{seed}", seed)
        said.append(attempt(tmp_path / f"{seed}"))
        assert said[-1].isprintable() and len(said[-1]) <= 4000, seed
    assert len(set(said)) > 10
    capfd.readouterr()  # panics of the tokenizers library, which nobody can forbid
