"""Numbers of every origin become Python's; what is none is none."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from diffusiongemma.core.numbers import real, whole


@pytest.mark.parametrize(
    "given", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).byte()]
)
def test_whole_numbers(given: object) -> None:
    assert type(whole(given)) is int and whole(given) == 3
    assert type(real(given)) is float and real(given) == 3.0


@pytest.mark.parametrize(
    "given", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5),
              Fraction(1, 2), Decimal("0.5")]
)  # fmt: skip
def test_real_numbers(given: object) -> None:
    assert type(real(given)) is float and real(given) == 0.5
    assert whole(given) is None


@pytest.mark.parametrize(
    "given", [None, True, np.True_, np.array(True), torch.tensor(True), "3", b"3", np.str_("3"),
              [3], (3,), np.array([3]), torch.tensor([3]), 3j, np.complex128(3), object(), print]
)  # fmt: skip
def test_no_numbers(given: object) -> None:
    assert whole(given) is None and real(given) is None


def test_numbers_without_a_place() -> None:
    assert real(10**400) is None and whole(10**400) == 10**400
    assert whole(2.0) is None
    infinite, unknown = real(math.inf), real(math.nan)
    assert infinite == math.inf and unknown is not None and math.isnan(unknown)
