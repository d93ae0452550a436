"""Twenty loud checkpoints, written by transformers, opened once per session."""

import pytest
import torch

import toys
from parity_oracle import Pair, open_pair


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    """Open a toy on first use and keep it."""
    opened: dict[tuple[int, torch.dtype], Pair] = {}
    folder = tmp_path_factory.mktemp("toys")

    def get(toy: toys.Toy, dtype: torch.dtype = torch.float32) -> Pair:
        key = (toy.seed, dtype)
        if key not in opened:
            opened[key] = open_pair(toy, folder / str(toy.seed), dtype)
        return opened[key]

    return get


@pytest.fixture(params=toys.TWENTY, ids=lambda toy: f"toy{toy.seed}")
def pair(request: pytest.FixtureRequest, pairs) -> Pair:
    """Each of the twenty."""
    return pairs(request.param)
