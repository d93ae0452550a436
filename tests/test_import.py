"""Importing the package does nothing: no torch, no network, no environment, no logging."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "PIL"}

REPORT = """
import json, logging, os, socket, sys

def refuse(*_, **__):
    raise OSError("an import reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse
environment = dict(os.environ)
import {module}
package = logging.getLogger("diffusiongemma")
print(json.dumps({{
    "modules": sorted(sys.modules),
    "environment": dict(os.environ) == environment,
    "root handlers": [type(h).__name__ for h in logging.getLogger().handlers],
    "handlers": [type(h).__name__ for h in package.handlers],
    "level": package.level,
}}))
"""


def run(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=60
    ).stdout


def test_importing_the_package_does_nothing() -> None:
    found = json.loads(run("-c", REPORT.format(module="diffusiongemma")))
    assert not HEAVY & set(found["modules"])
    assert found["environment"]
    assert found["root handlers"] == []
    assert set(found["handlers"]) <= {"NullHandler"}
    assert found["level"] == 0


@pytest.mark.parametrize(
    "module", ["core.errors", "core.log", "core.shapes", "checkpoint.hub", "checkpoint.client"]
)
def test_these_never_see_torch(module: str) -> None:
    """Import-linter does not see what the packages above a module import; this does."""
    found = json.loads(run("-c", REPORT.format(module=f"diffusiongemma.{module}")))
    assert "torch" not in found["modules"]
