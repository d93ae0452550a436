"""Compiles the C files here for this machine's processor, once, and keeps the library in the user's
cache.

Needs a C compiler (gcc from 12, or clang); without one the plain forms run and `reason` says so.
The library's name is a hash of everything that decides it: source, compiler, flags, processor. A
home that several machines share holds one for each kind of processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path

from diffusiongemma.core.errors import DeviceError
from diffusiongemma.core.log import logger
from diffusiongemma.kernels.fast import SWITCH, plain_asked

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "trunk.c", _HERE / "readout.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast", "-pthread")
_NAMES = ("cc", "gcc", "clang")
_SECONDS = 120  # that a compiler may take


def reason() -> str | None:
    """Why small networks take the plain forms on this machine's CPU; None if they do not."""
    return _found()[1]


def library() -> ctypes.CDLL | None:
    """The compiled calls, made if need be (seconds, once); None where there is none."""
    return _found()[0]


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by itself, and the library has it do so."""
    found = library()
    return found is not None and bool(found.diffusiongemma_pairs())


def obstacle() -> str | None:
    """What is known to be in the way before anything is compiled; None if nothing is."""
    if plain_asked():
        return f"{SWITCH} is 'plain'"
    if os.name != "posix":
        return "it is made for Linux and macOS"
    if not _command():
        return f"no C compiler was found ({os.environ.get('CC') or ', '.join(_NAMES)})"
    return None


@functools.lru_cache
def _found() -> tuple[ctypes.CDLL | None, str | None]:
    if (why := obstacle()) is not None:
        return None, why
    try:
        return _opened(_kept() or _made()), None
    except (OSError, RuntimeError, DeviceError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        lines = [line for line in told.splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), (lines or [""])[0])
        logger.warning("the CPU's own code could not be made (%s); the plain forms are used", why)
        return None, f"it could not be made: {why}"


def _command() -> list[str]:
    """The compiler with its flags; empty where there is none."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # quotes without an end
        return []
    for words in [named] if named else [[name] for name in _NAMES]:
        if (found := shutil.which(words[0])) is not None:
            aim = "-mcpu" if platform.machine() in ("arm64", "aarch64") else "-march"
            return [found, *words[1:], *_FLAGS, f"{aim}=native"]
    return []


def _name() -> str:
    """What decides the library, as the beginning of its name."""
    command = _command()
    texts = [path.read_text() for path in (*sorted(_HERE.glob("*.h")), *_SOURCES)]
    changed = str(os.stat(command[0]).st_mtime_ns)
    told = "\n".join([*texts, *command, changed, _processor()])
    return f"native-{hashlib.sha256(told.encode()).hexdigest()[:20]}-"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def _kept() -> Path | None:
    """The library made before, if it is whole: the end of its name is a hash of what is in it."""
    for path in sorted(_folder().glob(f"{_name()}*.so")):
        _check(path)
        if path.stem.endswith(f"-{_digest(path)}"):
            return path
        path.unlink()
    return None


def _made() -> Path:
    """Compile. The file appears whole or not at all."""
    logger.info("compiling the steps of small networks for this processor (seconds, once)")
    scratch = _folder() / f".{secrets.token_hex(6)}.so"
    try:
        subprocess.run(
            [*_command(), *map(str, _SOURCES), "-o", str(scratch), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        scratch.chmod(0o700)
        target = scratch.with_name(f"{_name()}{_digest(scratch)}.so")
        os.replace(scratch, target)
        return target
    finally:
        scratch.unlink(missing_ok=True)


def _folder() -> Path:
    """A folder of the user's own that nobody else may write to, nor to the one that it is in."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = named if named.is_absolute() else Path.home() / ".cache"
    for name in ("diffusiongemma", "native"):
        folder = folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check(folder)
    return folder


def _check(path: Path) -> None:
    about = path.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022 or path.is_symlink():
        raise DeviceError(f"others may write to {path}; make it yours alone, or remove it")


def _processor() -> str:
    """What `native` means here."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    about = Path("/proc/cpuinfo")
    if about.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = about.read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join(facts)


def _opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for call in (found.diffusiongemma_trunk, found.diffusiongemma_readout):
        call.restype, call.argtypes = ctypes.c_int, [ctypes.c_void_p]
    found.diffusiongemma_pairs.restype, found.diffusiongemma_pairs.argtypes = ctypes.c_int, []
    return found
