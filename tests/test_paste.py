"""README's command lines, pasted one after the other into a fresh shell after a clone."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli_help import ROOT

STAMPS = (".made", ".runtime", ".test", ".dev")  # of the Makefile: what is installed already


def clone(folder: Path) -> Path:
    """A clone of what is here, its environment made without fetching anything anew."""
    if not (ROOT / ".git").exists() or shutil.which("make") is None:
        pytest.skip("needs a git checkout and make")
    made = folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(made)], check=True, capture_output=True)
    for name in ("README.md", "Makefile", "src", "examples"):  # as they are, committed or not
        there = made / name
        shutil.rmtree(there) if there.is_dir() else there.unlink()
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, there)
    environment = made / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "_packages.pth").write_text(f"{made / 'src'}\n{Path(torch.__file__).parents[1]}\n")
    command = environment / "bin" / "diffusiongemma"
    call = "from diffusiongemma.cli.main import main; raise SystemExit(main())"
    command.write_text(f"#!{environment / 'bin' / 'python'}\n{call}\n")
    command.chmod(0o755)
    for stamp in STAMPS:
        (environment / stamp).touch()
    return made


def first_commands() -> list[str]:
    """The lines of the README's first block of commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].splitlines()


class Shell:
    """A fresh bash at a terminal."""

    def __init__(self, place: Path, home: Path) -> None:
        keep = ("PATH", "LANG", "OMP_NUM_THREADS")
        fresh = {name: value for name, value in os.environ.items() if name in keep}
        self._master, slave = os.openpty()
        self.seen = ""
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-i"],
            cwd=place, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=fresh | {"HOME": str(home), "PS1": "(rc $?) ", "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.until(r"\(rc 0\) ")

    def type(self, keys: str) -> None:
        """Press keys; what was seen before is forgotten."""
        self.seen = ""
        os.write(self._master, keys.encode())

    def until(self, pattern: str, seconds: float = 600.0) -> re.Match[str]:
        """Read on until a pattern stands at the end."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern + r"$", self.seen)) is None:
            assert time.monotonic() < end, f"not seen: {pattern}\n{self.seen}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
        return found

    def close(self) -> None:
        """End it."""
        self._bash.kill()
        self._bash.wait()
        os.close(self._master)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    home = tmp_path / "home"
    home.mkdir()
    opened = Shell(clone(tmp_path), home)
    yield opened
    opened.close()


@pytest.mark.slow
def test_every_line_of_the_first_block_works(shell: Shell) -> None:
    said = ""
    for line in first_commands():
        shell.type(f"{line}\n")
        if line.startswith("diffusiongemma chat"):
            shell.until(r"\n> ")
            shell.type("\x04")
        code = shell.until(r"\(rc (\d+)\) ")
        said += shell.seen
        assert code[1] == "0", said
    assert "7 9 11 30 52" in said and "| subtraction" in said
