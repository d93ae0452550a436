"""The rules of conventions.py hold in src, and each of them can fail."""

import builtins
import inspect
from pathlib import Path

import pytest

import conventions
from diffusiongemma.core import errors

SRC = Path(__file__).parent.parent / "src" / "diffusiongemma"
FILES = sorted(SRC.rglob("*.py"))
# These clean what they print.
DOORS = {SRC / "cli" / "output.py", SRC / "cli" / "screen.py", SRC / "train" / "live.py"}
# Where a backend may be chosen: the table of ops, the trunk, the device; training, which captures
# its steps; the rooms that measure; and Triton's own kernels.
CHOOSERS = ("kernels/ops.py", "model/trunk.py", "core/device.py", "train/", "cli/whole/")
CHOOSERS += ("cli/benching/", "kernels/triton/")
# And where it is asked besides, with the reason.
BESIDES = {
    "checkpoint/load.py": "whether weights stay the mapped file, or are nowhere",
    "engine/quick.py": "captured steps are for GPUs, until every step is one",
    "model/fused.py": "this trunk is made of Triton's kernels",
}


def test_the_sources_are_found() -> None:
    assert SRC / "core" / "errors.py" in FILES


@pytest.mark.parametrize("check", conventions.EVERYWHERE, ids=lambda check: check.__name__)
def test_src_keeps(check: conventions.Check) -> None:
    files = [file for file in FILES if check is not conventions.prints or file not in DOORS]
    found = [f"{f.relative_to(SRC)}:{line}" for f in files for line in check(f.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_a_backend_is_chosen_in_few_places() -> None:
    found: dict[str, list[str]] = {}
    for file in FILES:
        place = file.relative_to(SRC).as_posix()
        if not place.startswith(CHOOSERS):
            found[place] = list(conventions.choices(file.read_text("utf-8")))
    asked = {place: lines for place, lines in found.items() if lines}
    assert asked.keys() == BESIDES.keys(), {k: v for k, v in asked.items() if k not in BESIDES}


def _function(lines: int) -> str:
    return "def f():\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ("size", "x = 1\n" * 400, "x = 1\n" * 401),
        ("size", _function(59), _function(60)),
        ("docstring", '"""What it knows."""', "x = 1"),
        ("docstring", "", "# only a comment"),
        ("imports", "from __future__ import division", "from __future__ import annotations"),
        ("imports", "import json", "import pickle"),
        ("imports", "from torch import nn", "from torch import load"),
        ("imports", "import tokenizers", "def f():\n    from transformers.models import gemma"),
        ("unsafe_calls", "model.eval()", "eval('1')"),
        ("unsafe_calls", "execute('1')", "exec('1')"),
        ("unsafe_calls", "safetensors.torch.load(x)", "torch.load(x)"),
        ("raises", "raise InputError('x')", "raise ValueError('x')"),
        ("raises", "raise", "raise RuntimeError"),
        ("prints", "print('> ', end='')\nprint(PROMPT)", "print(name)"),
        ("prints", "say(name)", "sys.stderr.write(f'{name}')"),
        ("choices", "kind.type", "if x.device.type == 'cpu': pass"),
        ("choices", "x.device == y.device", "x.is_cuda"),
        ("choices", "torch.no_grad()", "torch.is_grad_enabled()"),
        (
            "choices",
            "from diffusiongemma.kernels.ops import choose",
            "from diffusiongemma.kernels.ops import no_triton",
        ),
        (
            "choices",
            "from diffusiongemma.kernels import ops",
            "def f():\n    from diffusiongemma.kernels.triton import refine",
        ),
        ("shapes", "x_BL = 1", "x_BZ = 1"),
        ("shapes", "x_P2 = 1", "for x_Q2 in y: pass"),
        ("shapes", "MAX_BZ = 1", "def f(x_Z): pass"),
        (
            "shapes",
            'def f(x_BL: Float[Tensor, "B L"] | None): pass',
            'def f(x_BV: Float[Tensor, "B L"] | None): pass',
        ),
        (
            "shapes",
            'def noise_BL() -> Float[Tensor, "B L"]: pass',
            'def noise_BL() -> Float[Tensor, "B V"]: pass',
        ),
        (
            "shapes",
            'class A:\n    x_B: Float[Tensor, " B"]',
            'class A:\n    x_B: Float[Tensor, "B 1"]',
        ),
        (
            "shapes",
            'def f(x_BL: Float[Tensor, "B L-1"]): pass',
            'def f(*, x_BL: Float[Tensor, "L B"]): pass',
        ),
    ],
)
def test_each_rule_can_fail(check: str, good: str, bad: str) -> None:
    complain = getattr(conventions, check)
    assert list(complain(good)) == []
    assert len(list(complain(bad))) == 1


def _is_also_builtin(kind: type) -> bool:
    plain = (Exception, BaseException, object)
    return any(vars(builtins).get(base.__name__) is base not in plain for base in kind.__mro__)


def test_every_error_is_ours_and_of_the_standard_library() -> None:
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind is not errors.DiffusionGemmaError
    ]
    assert len(kinds) >= 6
    for kind in kinds:
        assert issubclass(kind, errors.DiffusionGemmaError), kind
        assert _is_also_builtin(kind), kind
    assert not _is_also_builtin(errors.DiffusionGemmaError)
