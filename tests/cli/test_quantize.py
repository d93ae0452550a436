"""The verb `quantize`: a folder, a table, and every refusal before the work."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffusiongemma as dg
from cli_help import Call, edit
from diffusiongemma.cli import damage
from diffusiongemma.cli.main import main
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.engine.open import SHIPPED

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, and one problem of each to look at, are enough."""
    monkeypatch.setattr(damage, "EACH", 1)
    monkeypatch.setattr(damage, "ROUNDS", 1)
    tasks = {name: damage.TASKS[name] for name in ("sorting", "reversing")}
    monkeypatch.setattr(damage, "TASKS", tasks)


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's lines."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def number(cell: str) -> float:
    return float(cell.removesuffix("%").strip())


def test_the_small_model_and_what_it_costs(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "small-fp8"
    done = call("quantize", "--out", out, "--count", "1", "--device", "cpu")
    assert done.code == 0, done.err
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (SHIPPED, out))
    assert after < before / 3
    first = done.out.splitlines()[0]
    assert first == f"{out}: {after / 1e6:.1f} MB of weights, before {before / 1e6:.1f} MB"
    cells = rows(done.out)
    levels = [row for row in cells if row[0] in ("25 %", "50 %", "75 %", "100 %")]
    assert len(levels) == 4
    for row in levels:
        mean, largest, spread, share, agree = map(number, row[2:])
        assert 0 < mean < largest and agree > 90
        assert share < 10 and abs(share - 100 * mean / spread) < 0.2
    total = next(row for row in cells if row[0] == "all")
    assert total[1] == "2"
    cost = {row[0]: list(map(number, row[1:])) for row in cells if row[0].startswith(("ms", "st"))}
    assert cost["steps per canvas"][:2] == list(map(number, total[4:]))
    for side in (0, 1):
        product = cost["steps per canvas"][side] * cost["ms per step"][side]
        assert abs(cost["steps x ms"][side] - product) < 0.02 * product + 0.02
    ratio = cost["steps x ms"][1] / cost["steps x ms"][0]
    assert abs(cost["steps x ms"][2] - ratio) < 0.02
    card = (out / "README.md").read_text()
    assert done.out.split("\n", 2)[2].strip() in card and "FP8-dynamic" in card
    assert "measuring: logits after" in done.err and "|" not in done.err
    answer = call("-m", out, "Reverse: lantern", "--seed", "1")
    assert answer.code == 0 and answer.out.strip() == "nretnal"


def test_a_folder_without_damage(call: Call, words: Path, tmp_path: Path) -> None:
    done = call("quantize", "-m", words, "--out", tmp_path / "out", "--no-damage")
    assert (done.code, done.err.count("measuring")) == (0, 0)
    assert len(done.out.splitlines()) == 1
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    assert "What it cost" not in (tmp_path / "out" / "README.md").read_text()
    report = call("doctor", "-m", tmp_path / "out").out
    assert "F8_E4M3: " in report and "opens: yes" in report
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as file:
        assert any(name.endswith("experts.0.up_proj.weight_scale") for name in file.keys())


def test_the_tables_may_be_data(call: Call, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    edit(copy / "generation_config.json", max_new_tokens=16, max_denoising_steps=4)
    done = call("quantize", "-m", copy, "--out", out, "--count", "1", "--device", "cpu", "--json")
    found = json.loads(done.out)
    assert found["out"] == str(out)
    assert 0 < found["after_bytes"] < found["before_bytes"]
    assert [one["level"] for one in found["logits"]] == list(damage.LEVELS)
    assert [one["task"] for one in found["answers"]] == [*damage.TASKS, "all"]
    assert found["answers"][-1]["steps"] == found["cost"]["steps"]
    assert f"| {found['cost']['milliseconds'][0]:.2f} |" in (out / "README.md").read_text()


def test_logits_of_a_network_without_words(call: Call, bare: Path, tmp_path: Path) -> None:
    done = call("quantize", "-m", bare, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(rows(done.out)) == 1 + 4
    assert "answers" not in done.err


def test_overwriting_is_asked_for(call: Call, refused: Refused, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("quantize", "-m", bare, "--out", out, "--no-damage").code == 0
    (out / "old").write_text("x")
    said = refused("quantize", "-m", bare, "--out", out, "--no-damage")
    assert said == f"{out} exists; name another folder, or pass --overwrite"
    assert (out / "old").exists()
    assert call("quantize", "-m", bare, "--out", out, "--no-damage", "--overwrite").code == 0
    assert not (out / "old").exists()


def test_mistakes_are_told_before_the_work(refused: Refused, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def says(pattern: str, *words: object) -> None:
        said = refused("quantize", *words)
        assert re.search(pattern, said), said
        assert list(tmp_path.iterdir()) == []

    both = ["-m", bare, "--out", out]
    says("quantize writes a folder, and none is named; add --out FOLDER")
    says("unknown format 'fp4'; did you mean 'fp8'", *both, "--format", "fp4")
    says("--count: must be a whole number from 0 to 100,000, got '-1'", *both, "--count", "-1")
    says("--count is asked of the damage", *both, "--count", "3", "--no-damage")
    says("is neither a folder nor a hub id", "-m", "nowhere", "--out", out)
    says("is the checkpoint that is read", "-m", bare, "--out", bare, "--overwrite")
    says("unknown option '--coun'; did you mean '--count'", *both, "--coun", "3")
    says("'small' is one word too many; the folder to write is --out small, the model", "small")


def test_it_is_quantised_already(call: Call, refused: Refused, bare: Path, tmp_path: Path) -> None:
    assert call("quantize", "-m", bare, "--out", tmp_path / "out", "--no-damage").code == 0
    said = refused("quantize", "-m", tmp_path / "out", "--out", tmp_path / "twice")
    assert "is quantised already; quantise the checkpoint that it was made from" in said
    assert not (tmp_path / "twice").exists()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the small model in it."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "mine" / "model"))


def test_nothing_is_written_over_its_own_source(copied: Path, capsys) -> None:
    around, inside = copied.parent, copied / "out"
    (around / "config.json").write_text("{}")
    for out in (around, inside):
        assert (
            main(["quantize", "-m", str(copied), "--out", str(out), "--no-damage", "--overwrite"])
            == 2
        )
        assert "lie one within the other" in capsys.readouterr().err
    assert (copied / "model.safetensors").is_file() and not inside.exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--no-damage", "--device", "cpu"], "--device is where the damage is measured"),
        (["--device", "nosuch"], "unknown device 'nosuch'"),
        (["--count", "1000000000"], "--count: must be a whole number from 0 to 100,000"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    asked: list[str], said: str, tmp_path: Path, capsys
) -> None:
    assert main(["quantize", "--out", str(tmp_path / "out"), *asked]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(copied: Path, bad: float, capsys) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    name = "model.decoder.layers.1.self_attn.q_proj.weight"
    tensors[name][3, 4] = bad
    save_file(tensors, file, metadata={"format": "pt"})
    out = copied.parent / "out"
    assert main(["quantize", "-m", str(copied), "--out", str(out), "--no-damage"]) == 2
    assert f"{name} in" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_damaged_scales_and_codes_are_found_on_opening(copied: Path, bad: float, capsys) -> None:
    out = copied.parent / "out"
    assert main(["quantize", "-m", str(copied), "--out", str(out), "--no-damage"]) == 0
    file = out / "model.safetensors"
    name = "model.decoder.layers.1.self_attn.q_proj.weight"
    for part in ("", "_scale"):
        tensors = load_file(file)
        if part:
            tensors[name + part][3] = bad
        else:
            tensors[name].view(torch.uint8)[3, 4] = 0xFF
        save_file(tensors, copied.parent / "bad.safetensors", metadata={"format": "pt"})
        broken = Path(shutil.copytree(out, copied.parent / f"broken{part}", dirs_exist_ok=True))
        shutil.copyfile(copied.parent / "bad.safetensors", broken / "model.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(name + part)):
            dg.load(broken)


def test_a_copy_that_differs_is_no_copy(copied: Path, capsys) -> None:
    """As on opening: a table for the head that is another than the embedding's."""
    file = copied / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"] * 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    out = copied.parent / "out"
    assert main(["quantize", "-m", str(copied), "--out", str(out), "--no-damage"]) == 2
    assert "lm_head.weight in" in capsys.readouterr().err
    assert not out.exists()
