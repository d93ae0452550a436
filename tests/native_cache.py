"""Compilers and caches for the tests of what is compiled at first use."""

import subprocess
from pathlib import Path

import pytest

from diffusiongemma.kernels.native import build

compiled = pytest.mark.skipif(
    build.obstacle() is not None, reason=f"no compiler: {build.obstacle()}"
)
CC = (build._command() or [""])[0]
LEFT = """#!/bin/sh
compile() { echo "$1" | {cc} -shared -fPIC -w -x c - -o "$out"; }
out=made.so
"""
SYMBOLS = "int diffusiongemma_trunk, diffusiongemma_readout, diffusiongemma_pairs;"


def made(cache: Path) -> list[Path]:
    return sorted((cache / "diffusiongemma" / "native").iterdir())


def compiler(folder: Path, script: str, patch: pytest.MonkeyPatch) -> Path:
    path = folder / "cc"
    path.write_text(LEFT.replace("{cc}", CC) + script + "\n")
    path.chmod(0o755)
    patch.setenv("CC", str(path))
    return path


def shared(path: Path, text: str) -> None:
    """A small library."""
    command = [CC, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=text, text=True, check=True)
