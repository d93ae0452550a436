"""One toy checkpoint for the whole room, as transformers writes it."""

import shutil
from pathlib import Path

import pytest

import toys

TOY = toys.Toy(seed=31, layers="ssfsf", vocabulary=400)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / "toy"
    toys.write(TOY, folder)
    return folder


@pytest.fixture
def toy(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "toy"))
