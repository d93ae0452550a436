"""The recipes run as they are documented; what they write opens."""

import json
import subprocess
import sys
from pathlib import Path

import diffusiongemma as dg
from cli_help import ENVIRONMENT, ROOT


def test_the_small_model_s_recipe(tmp_path: Path) -> None:
    few = ["steps=2", "batch=2", "save_every=1", "log_every=1"]
    words = [str(tmp_path), "--threads", "1", "--set", *few]
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "small.py"), *words],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Sudoku: ") == 2, "samples after each checkpoint"
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert all(abs(sum(layer) - 1) < 0.01 for layer in log[-1]["expert_share"])
    shipped, made = dg.load(), dg.load(tmp_path / "model")
    assert made.model.config == shipped.model.config and made.eos == shipped.eos
    assert made.chat is not None and shipped.chat is not None
    turns = [{"role": "user", "content": "Sort: 3 1 2"}]
    assert made.chat.render(turns).ids == shipped.chat.render(turns).ids
