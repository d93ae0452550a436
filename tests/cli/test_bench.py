"""The verb `bench`: its floor, its table, its file. How fast anything is, no test can say."""

import json
from pathlib import Path

import pytest
import torch

from diffusiongemma.cli import main
from diffusiongemma.cli.benching.floor import step_flops
from diffusiongemma.cli.benching.measure import spread
from train_toy import toy


def test_the_floor_counts_every_product() -> None:
    config = toy().config  # 32 wide, 4 heads of 16, 2 of keys, 48 dense, 2 of 4 experts of 16
    sliding = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 2 * 64 * (7 + 4)
    full = 32 * 64 + 32 * 32 + 64 * 32 + 2 * 64 * (20 + 4)
    each = 3 * 32 * 48 + 32 * 4 + 2 * 3 * 32 * 16
    around = 3 * 32 * 48 + 2 * 40 * 32  # self-conditioning; the head and the expected embedding
    assert step_flops(config, 20, 3) == 2 * 3 * 4 * (sliding + full + 2 * each + around)


def test_spread_of_samples() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"count": 3, "min": 1.0, "median": 2.0, "max": 3.0}
    assert spread([]) == {"count": 0}


# transformers marks CUDA graph steps even on the CPU, which imports a corner of torch that warns.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside transformers"])
def test_a_small_case_is_measured_and_written(
    alone: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    words = ["bench", "--quick", "--rounds", "1", "--steps", "2", "--canvases", "1"]
    assert main.main([*words, "--out", str(file), *(["--alone"] if alone else [])]) == 0
    report = json.loads(file.read_text())
    (case,) = report["cases"]
    assert report["torch"] == torch.__version__ and case["floor_seconds"] > 0
    for side in ("ours",) if alone else ("ours", "transformers"):
        seen = case[side]["step_seconds"]
        assert 0 < seen["min"] <= seen["median"] <= seen["max"]
        assert case[side]["answer_seconds"]["count"] == 1
    assert ("transformers" in case) is not alone
    assert capsys.readouterr().out.strip().endswith("|")


@pytest.mark.slow
def test_its_figures_may_be_printed_instead(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--quick", "--rounds", "1", "--steps", "2", "--canvases", "1", "--alone"]
    assert main.main([*words, "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["model"] == "shipped" and case["ours"]["step_seconds"]["median"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "--batch: must be a whole number from 1 to 65,536, got '0'"),
        (["--dtype", "int3"], "--dtype must be float32 or bfloat16"),
        (["--threads", "9" * 30], "--threads: must be a whole number from 1 to 1,024"),
        (["--batch", "1", "8"], "repeat the flag, as in --batch 1 --batch 8"),
        (["--rounds", "0"], "--rounds: must be a whole number from 1"),
        (["--out", "."], "'.' cannot be written: it is a folder"),
    ],
)
def test_bad_options_are_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", *words]) == 2
    assert said in capsys.readouterr().err
