"""How this folder makes kernels.

`jit` is `triton.jit` for functions that somebody else has already wrapped: the tests check the
shapes and types of every function of the package, and a kernel must reach Triton bare.
"""

import inspect
from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """A Triton kernel, or a function that kernels call."""
    return triton.jit(inspect.unwrap(function))
