"""`diffusiongemma doctor`: what is reported, and every problem of a checkpoint in one go."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusiongemma as dg
from cli_help import Call, edit
from diffusiongemma.checkpoint.names import original
from diffusiongemma.cli import machine
from diffusiongemma.engine.open import SHIPPED
from diffusiongemma.model.count import parameters


def test_a_report_for_people(call: Call) -> None:
    done = call("doctor")
    assert (done.code, done.err) == (0, "")
    for words in (
        "torch: ", "threads: ", "bfloat16: ", "memory: ", "needs: 52.0 GB", "cache: ",
        "  trunk: ", "op         backend", "batch-invariant  cut-invariant  reason\n",
        "\n  experts    torch        yes              yes            tokens sorted by expert",
        "chat templates\n  rendered: in ",
    ):  # fmt: skip
        assert words in done.out, words


def test_a_report_for_programs(call: Call, words: Path) -> None:
    found = json.loads(call("doctor", "--json", "-m", words).out)
    assert found["processor"]["memory_bytes"] > found["processor"]["free_bytes"] > 0
    kernels = found["kernels"]
    assert (kernels["device"], kernels["table"]) == ("cpu", "cpu")
    assert set(kernels["ops"]) >= {"trunk", "attention", "experts", "norm_rope", "readout"}
    for fact in kernels["ops"].values():
        assert set(fact) == {"backend", "reason", "batch_invariant", "cut_invariant"}
    assert found["checkpoint"]["opens"] is True
    assert found["checkpoint"]["problems"] == []
    assert found["checkpoint"]["vocabulary"] == 300
    assert found["released"]["fits"]["needs_bytes"] == machine.RELEASED_BYTES
    for name in keys(found):
        assert re.fullmatch(r"[a-z][a-z0-9_]*|cuda:\d|F32", name), name


def test_what_runs_is_what_load_would_choose(
    call: Call, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table and the trunk of the model that is asked about."""
    for asked in ("auto", "reference"):
        monkeypatch.setenv("DIFFUSIONGEMMA_KERNELS", asked)
        found = json.loads(call("doctor", "--json", "-m", words).out)["kernels"]
        choice = dg.load(words).model.choice
        assert (found["table"], found["trunk"]) == (choice.ops.name, choice.trunk)
        facts = {"trunk": choice.fact, **choice.ops.facts}
        assert found["ops"] == {name: asdict(fact) for name, fact in facts.items()}


def keys(report: dict[str, Any]) -> Iterator[str]:
    for name, value in report.items():
        yield name
        if isinstance(value, dict):
            yield from keys(value)


def test_the_model_inside_the_package_is_looked_at_and_counted_as_everywhere(call: Call) -> None:
    """The report, the object's own words and the card have one number."""
    gemma = dg.load()
    told = f"{parameters(gemma.model.config):,} parameters"
    assert told in repr(gemma) and told in (SHIPPED / "README.md").read_text("utf-8")
    done = call("doctor")
    assert done.code == 0
    assert "  model: the small model inside the package\n" in done.out
    assert f"  parameters: {told.removesuffix(' parameters')}\n" in done.out
    assert done.out.endswith("  opens: yes\n")


def test_a_checkpoint_is_described_without_reading_weights(
    words: Path, bare: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = [name for name in load_file(words / "model.safetensors") if original(name) is None]
    gemma = dg.load(words)
    count = sum(weight.numel() for weight in gemma.model.parameters())
    out = call("doctor", "-m", words).out
    for said in (
        f"parameters: {count:,}\n",
        f"tensors\n    F32: {len(stored)}\n",
        "layers: 3: 2 sliding over 16, 1 full; width 64",
        "experts: 8, of which 2 serve a token",
        "context: 512 tokens, canvas 16",
        "tokenizer: 300 tokens",
        "chat template: found",
        "opens: yes",
    ):
        assert said in out, said
    out = call("doctor", "-m", bare).out
    assert "tokenizer: none: it takes and gives token ids" in out and "opens: yes" in out


def test_every_problem_is_listed(copy: Path, call: Call) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    edit(copy / "generation_config.json", t_max="hot")
    (copy / "chat_template.jinja").write_text("{% if %}")
    done = call("doctor", "-m", copy)
    assert (done.code, done.err) == (2, "")
    assert "opens: no" in done.out
    problems = [line for line in done.out.splitlines() if line.startswith("  problem: ")]
    assert len(problems) == 3
    for words in (f"1 missing: {name}", "is not a jinja template", "t_max must be a number"):
        assert any(words in problem for problem in problems), words


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"{", "is not valid JSON"),
        ("model.safetensors", b"", "is truncated or damaged"),
        ("tokenizer.json", b"{}", "is not a tokenizer"),
        ("tokenizer_config.json", b"[", "is not valid JSON"),
        ("preprocessor_config.json", b'{"patch_size": 0}', "patch_size must be"),
    ],
)
def test_a_problem_is_told_once(
    name: str, content: bytes, problem: str, copy: Path, call: Call
) -> None:
    (copy / name).write_bytes(content)
    (copy / "chat_template.jinja").unlink()  # now it is looked for in tokenizer_config.json, too
    done = call("doctor", "-m", copy)
    assert done.code == 2
    assert done.out.count("problem: ") == 1 and problem in done.out, done.out


def test_folders_that_are_none(tmp_path: Path, call: Call) -> None:
    assert "problem: no folder at" in call("doctor", "-m", tmp_path / "nowhere").out
    done = call("doctor", "-m", "nobody/nothing")
    assert done.code == 2 and "load it once while online" in done.out


def test_options_that_mean_nothing(refused) -> None:
    assert "--revision needs -m" in refused("doctor", "--revision", "v2")
    assert "unknown option '--jso'; did you mean '--json'?" in refused("doctor", "--jso")


def test_gpus_are_told_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.gpus() == {"none": "this torch is built without CUDA"}
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus()["none"].endswith("; CUDA_VISIBLE_DEVICES is ''")
    card = SimpleNamespace(name="H200", major=9, minor=0, total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    found = machine.gpus()
    assert found["cuda:0"]["capability"] == "9.0"
    fits = machine.fit(machine.RELEASED_BYTES, found)
    assert fits["cuda:0"] == "fits in 150.0 GB"
    card.total_memory = 24_000_000_000
    fits = machine.fit(machine.RELEASED_BYTES, machine.gpus())
    assert fits["cuda:0"].startswith("does not fit in 24.0 GB; ")


def test_a_system_that_tells_little(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setattr(machine, "_lines", lambda path: [])
    monkeypatch.delattr("os.sysconf")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    done = call("doctor")
    assert done.code == 0
    assert "memory: unknown" in done.out and "cpu: unknown" in done.out
