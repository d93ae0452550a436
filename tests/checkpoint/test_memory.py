"""Loading needs the model once, in the format asked for, and one shard; measured from outside."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusiongemma.checkpoint.load import find_shards
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.model import DiffusionGemma

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc to measure memory"
)
MB = 1_000_000
ALLOWANCE = 16 * MB  # modules, the allocator, and 64 kB around the first byte of each mapped tensor

CONFIG = ModelConfig(
    vocab_size=24_000,
    hidden_size=512,
    intermediate_size=256,
    layers=tuple(LayerConfig(sliding=n < 7, head_dim=32, num_key_value_heads=2) for n in range(8)),
    num_attention_heads=4,
    sliding_window=16,
    num_experts=16,
    top_k_experts=2,
    moe_intermediate_size=320,
    max_position_embeddings=512,
    dtype="float32",
)

# Loads a small checkpoint first, so that code and libraries are in memory before the baseline.
SCRIPT = """
import json, re, resource, sys
from pathlib import Path
import torch
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import load_model, read_json

def load(folder, dtype):
    config = from_hf(read_json(folder / "config.json"))
    return load_model(folder, config, device=torch.device("cpu"), dtype=dtype)

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

dtype = getattr(torch, sys.argv[3])
for small in (torch.float32, torch.bfloat16):
    sum(value.sum() for value in load(Path(sys.argv[1]), small).state_dict().values())
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = {key: status(key) for key in ("VmRSS", "RssAnon")}
model = load(Path(sys.argv[2]), dtype)
peak = status("VmHWM") - before["VmRSS"]
private = status("RssAnon") - before["RssAnon"]
for value in model.state_dict().values():  # touch every page
    value.view(-1)[::512].float().sum()
used = status("VmHWM") - before["VmRSS"]
size = sum(value.nbytes for value in model.state_dict().values())
print(json.dumps(dict(peak=peak, private=private, used=used, size=size,
                      lifetime=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB of random float32 in shards."""
    with torch.device("meta"):
        model = DiffusionGemma(CONFIG)
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.uniform_(-1, 1)
    return save_model(model, tmp_path_factory.mktemp("large") / "large", shard_bytes=60 * MB)


@pytest.fixture(scope="module")
def mixed(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one bfloat16 tensor in each shard: it must not keep its shard in memory."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in large.iterdir():
        (folder / path.name).symlink_to(path)
    for path in find_shards(folder):
        tensors = load_file(path)
        smallest = min(tensors, key=lambda name: tensors[name].numel())
        assert tensors[smallest].numel() <= 512
        tensors[smallest] = tensors[smallest].bfloat16()
        path.unlink()
        save_file(tensors, path)
    return folder


def measure(small: Path, folder: Path, dtype: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small), str(folder), dtype],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("large", "float32"), ("large", "bfloat16"), ("mixed", "bfloat16"), ("mixed", "float32")],
)
def test_peak_is_the_model_and_one_shard(
    written: Path,
    kind: str,
    dtype: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    folder: Path = request.getfixturevalue(kind)
    shards = [path.stat().st_size for path in find_shards(folder)]
    assert sum(shards) > 290 * MB and len(shards) >= 5
    found = measure(written, folder, dtype)
    allowed = found["size"] + max(shards) + ALLOWANCE
    stored = "float32" if kind == "large" else "float32 and a little bfloat16"
    record_property(
        "measured",
        f"loading {sum(shards) / MB:.0f} MB of {stored} in {len(shards)} shards as {dtype}: peak "
        f"{found['peak'] / MB:.0f} MB, {found['used'] / MB:.0f} MB once used (private "
        f"{found['private'] / MB:.0f} MB); model {found['size'] / MB:.0f} MB + one shard "
        f"{max(shards) / MB:.0f} MB",
    )
    assert found["peak"] <= found["used"] <= allowed
    assert found["private"] <= found["size"] + ALLOWANCE
    if kind == "large" and dtype == "float32":  # stays mapped: nothing is copied at all
        assert found["private"] <= ALLOWANCE
        assert found["peak"] <= ALLOWANCE
