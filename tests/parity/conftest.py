"""Twenty loud checkpoints, written by transformers, opened once per session."""

import pytest
import torch

import toys
from parity_oracle import Pair, open_pair

Toy = toys.Toy
TOYS = [
    Toy(seed=1),
    Toy(seed=2, layers="sssssf", canvas=8),
    Toy(seed=3, layers="sf", heads=8, kv=4, window=8, canvas=32),
    Toy(seed=4, layers="sfsf", kv=1, window=24, experts=16, top=4),
    Toy(seed=5, layers="fsf", full_kv=2, full_head_dim=16, canvas=24),
    Toy(seed=6, hidden=48, heads=6, kv=3, full_kv=3, head_dim=8, standardize=False),
    Toy(seed=7, partial=0.5, window=12, canvas=64),
    Toy(seed=8, experts=4, top=1, partial=1.0),
    Toy(seed=9, experts=12, top=12, hidden=96),
    Toy(seed=10, layers="ssf", full_head_dim=64, full_kv=2, canvas=128, longest=2048),
    Toy(seed=11, layers="sssf", window=5, canvas=9),
    Toy(seed=12, heads=2, kv=2, full_kv=2, vocabulary=1000),
    Toy(seed=13, layers="ssssf", window=32, canvas=16),
    Toy(seed=14, hidden=80, head_dim=24, full_head_dim=40, partial=0.2),
    Toy(seed=15, layers="f", canvas=16),
    Toy(seed=16, layers="ssf", canvas=256, longest=2048),
    Toy(seed=17, layers="sffsf", window=9, standardize=False),
    Toy(seed=18, heads=8, kv=1, full_kv=4, experts=6, top=3),
    Toy(seed=19, layers="ssf", window=2, canvas=12),
    Toy(seed=20, layers="sssssfsssssf", hidden=32, heads=2, kv=1, canvas=16),
]


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


@pytest.fixture(params=TOYS, ids=lambda toy: f"toy{toy.seed}")
def pair(request: pytest.FixtureRequest, pairs) -> Pair:
    """Each of the twenty."""
    return pairs(request.param)
