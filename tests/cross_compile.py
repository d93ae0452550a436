"""Kernels compiled for a Hopper GPU on a machine that has none, and what came out.

By a process beside the tests' own, which runs kernels under Triton's interpreter: one for all of
them, since it takes seconds to start. A kernel is a line of JSON, and so is what came out.
"""

import atexit
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_BYTES = 227 * 1024  # that a block of an H100 or H200 can have


@dataclass(frozen=True)
class Built:
    """A compiled kernel.

    Attributes:
        wgmma: matrix instructions of the Hopper kind, as written in PTX.
        mma: older matrix instructions.
        spills: bytes of registers that went to memory, stores and loads.
        registers: of a thread.
        shared: bytes of shared memory of a block.
    """

    wgmma: int
    mma: int
    spills: int
    registers: int
    shared: int


def built(
    kernel: str,
    signature: dict[str, str],
    constants: dict[str, Any],
    *,
    warps: int = 4,
    stages: int = 3,
    **options: Any,
) -> Built:
    """Compile one kernel for sm_90.

    Args:
        kernel: where it is, `diffusiongemma.kernels.triton.experts:_gate_up`.
        signature: type of every argument that is no constant, in order, as Triton writes them
            (`*bf16`, `i32`); pointers and numbers are taken to be multiples of sixteen, but for
            numbers written as `i32:1` that are not.
        constants: of the arguments that are.
        warps: num_warps.
        stages: num_stages.
        options: others, such as maxnreg.
    """
    given = {"signature": signature, "constants": constants, "kernel": kernel}
    given["options"] = {"num_warps": warps, "num_stages": stages, **options}
    beside = _beside()
    assert beside.stdin is not None and beside.stdout is not None
    beside.stdin.write(json.dumps(given) + "\n")
    beside.stdin.flush()
    said = beside.stdout.readline()
    if not said:
        _beside.cache_clear()  # the next kernel has another
        raise AssertionError(f"the compiler's process ended with {beside.wait()}")
    found = json.loads(said)
    assert "error" not in found, found["error"]
    return Built(**found)


@functools.lru_cache
def _beside() -> subprocess.Popen[str]:
    """The process that compiles; it ends with this one."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, __file__]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    )
    atexit.register(process.communicate)
    return process


def main() -> None:
    """Compile line by line; what else is printed goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        given = json.loads(line)
        try:
            found = compiled(given["kernel"], given)
        except Exception:
            found = {"error": traceback.format_exc()[-4000:]}
        out.write(json.dumps(found) + "\n")
        out.flush()


def compiled(kernel: str, given: dict[str, Any]) -> dict[str, int]:
    """What comes out of a kernel, as `Built` has it."""
    import importlib

    import triton
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = kernel.split(":")
    function = getattr(importlib.import_module(module), name)
    types = {k: kind.partition(":")[0] for k, kind in given["signature"].items()}
    odd = {k for k, kind in given["signature"].items() if ":" in kind}
    signature = {k: types.get(k, "constexpr") for k in function.arg_names}
    even = [n for n, k in enumerate(function.arg_names) if k in types and k not in odd]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=given["constants"],
        attrs={(n,): [["tt.divisibility", 16]] for n in even},
    )
    out = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=given["options"])
    ptx = out.asm["ptx"]
    assembler = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        told = subprocess.run(
            [assembler, "-v", "--gpu-name", "sm_90a", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", told)]
    return {
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"[^g]mma\.sync", ptx)),
        "spills": sum(spills),
        "registers": max(int(n) for n in re.findall(r"Used (\d+) registers", told)),
        "shared": out.metadata.shared,
    }


if __name__ == "__main__":
    main()
