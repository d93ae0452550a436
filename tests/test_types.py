"""What a type checker says of a user's program: nothing of a right one, and where it is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_help import ENVIRONMENT, ROOT

RIGHT = """\
import numpy
from PIL import Image

import diffusiongemma as dg

gemma = dg.load(device="cpu")
reply: dg.Reply = gemma.generate("x", seed=1, stop=None, t_max=0.5, system="Be brief.")
gemma.generate([{"role": "user", "content": "x"}], images=[Image.new("RGB", (2, 2)), "a.png"])
gemma.generate([1, 2, 3], images=numpy.zeros((2, 2, 3)), rule=dg.EntropyBound(0.1))
for event in gemma.stream("x", max_new_tokens=None):
    if isinstance(event, dg.Finished):
        print(event.reply.text.upper())
for step in gemma.steps("x", ask=dg.Ask(top=2)):
    print(step.number + 1)
talk = gemma.converse(think=False, stop=["."])
print(talk.generate("x", max_denoising_steps=3).stats.seed)
print([one.text for one in gemma.generate_many(["x", "y"], seed=[1, 2], guard=True)])
"""
# One mistake a line.
WRONG = """\
import diffusiongemma as dg

gemma = dg.load(device="cpu")
gemma.generate("x", temprature=3)
gemma.generate("x", images=[5])
gemma.stream("x", t_max="hot")
gemma.generate_many(["x"], max_new_token=3)
gemma.steps("x", thinkk=True)
gemma.converse(images=["a.png"])
gemma.converse().generate("x", seed="one")
gemma.generate("x", stop=5)
gemma.generate("x").txt
"""
MISTAKES = range(4, 13)


def pyright(file: Path) -> list[str]:
    pytest.importorskip("pyright", reason="it comes with the extra 'dev'")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(file)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert "error" in done.stdout, done.stdout + done.stderr
    return re.findall(rf"{file.name}:(\d+):\d+ - error", done.stdout)


def mypy(file: Path) -> list[str]:
    pytest.importorskip("mypy", reason="it comes with the extra 'dev'")
    words = ["--no-error-summary", "--python-executable", sys.executable]
    words += ["--follow-imports", "silent", "--cache-dir", str(file.parent / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, str(file)],
        cwd=file.parent, env=ENVIRONMENT | {"MYPYPATH": str(ROOT / "src")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return re.findall(rf"{file.name}:(\d+): error", done.stdout)


@pytest.mark.parametrize("checker", [pyright, mypy])
def test_a_mistake_in_a_user_s_program_is_seen(checker, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text(WRONG)
    assert sorted(set(map(int, checker(wrong)))) == list(MISTAKES)
    assert checker(right) == []
