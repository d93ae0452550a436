"""What the documents show is run: every Python block, and the command lines of the README."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import toys
from cli_help import COMMAND, ENVIRONMENT
from diffusiongemma.cli.main import main
from toys_words import SIZE, write_words

ROOT = Path(__file__).parents[1]
RELEASED = "google/diffusiongemma-26B-A4B-it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for the released checkpoint; its answers are short."""
    made = tmp_path_factory.mktemp("readme")
    toys.write(toys.Toy(seed=51, vocabulary=SIZE, canvas=16, longest=256), made)
    write_words(made)
    (made / "generation_config.json").write_text('{"max_denoising_steps": 4}')
    return made


def blocks(document: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "docs/tour.md"])
def test_python_blocks_run(document: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    found = blocks(document, "python")
    assert found
    names: dict[str, object] = {}
    for block in found:
        code = block.replace(RELEASED, str(folder))
        exec(compile(code, document, "exec"), names)


def test_the_tour_s_code_runs_whatever_is_drawn() -> None:
    (code,) = blocks("docs/tour.md", "python")
    names: dict[str, object] = {}
    for seed in range(30):
        torch.manual_seed(seed)
        exec(compile(code, "docs/tour.md", "exec"), names)


def test_command_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        shlex.split(line.partition("#")[0])[1:]
        for block in blocks("README.md", "sh")
        for line in block.splitlines()
        if line.startswith("diffusiongemma")
    ]
    assert len(lines) == 6
    for words in lines:
        if words == ["chat"]:
            talk = [*COMMAND, "chat"]
            done = subprocess.run(
                talk, input="Reverse: abc\n", capture_output=True, text=True, env=ENVIRONMENT
            )
            assert done.returncode == 0 and done.stdout.strip(), done.stderr
            continue
        quick = {"evaluate": ["--count", "1"], "quantize": ["--no-damage"]}.get(words[0], [])
        assert main([*words, *quick]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^[\d ]+$", said, re.MULTILINE), "the sorted numbers"
    assert "| sorting: 3, one digit, up | 1 |" in said and "torch" in said
    assert (tmp_path / "trace.html").is_file()
