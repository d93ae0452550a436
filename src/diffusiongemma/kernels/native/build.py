"""Compiles the C files here for this machine's processor, once, and keeps the library in the user's
cache.

Needs a C compiler (gcc from 12, or clang); without one, or where the library would not be ours
alone, the plain forms run and `reason` says so. Nothing that goes wrong here ends an answer.

The library's name is a hash of everything that decides it: source, compiler, flags, processor; and
at the end one of what is in it. A home that several machines share holds one for each kind of
processor. What is kept was opened and tried by a process of its own first.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

from diffusiongemma.core import letters
from diffusiongemma.core.atomic import scratch_beside, settle, sweep
from diffusiongemma.core.errors import DeviceError
from diffusiongemma.core.log import logger
from diffusiongemma.kernels.native import place

_HERE = Path(__file__).parent
_SOURCES = ("trunk.c", "readout.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast", "-pthread")
_NAMES = ("cc", "gcc", "clang")
_SECONDS = 120.0  # that a compiler may take
_TRIAL_SECONDS = 30.0  # and a first call of what it made
_TOLD = 1 << 16  # bytes of a compiler's words that are read
_FILES = Path("/proc/self/fd")
_ONE = threading.Lock()
_TRY = """
import ctypes, sys
found = ctypes.CDLL(sys.argv[1])
found.diffusiongemma_trunk, found.diffusiongemma_readout, found.diffusiongemma_pairs
print("it can" if found.diffusiongemma_probe() == 1 else "its sums are wrong")
"""


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
    if os.name != "posix":
        return "it is made for Linux and macOS"
    if not _command():
        return f"no C compiler was found ({os.environ.get('CC') or ', '.join(_NAMES)})"
    return None


@functools.lru_cache
def _found() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        if (why := obstacle()) is not None:
            return None, why
        with _ONE:
            folder = place.own_folder(_folder())
            sweep(folder)
            if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
                raise DeviceError(
                    f"nothing may be run from the disk of {folder}; name another"
                    " folder with XDG_CACHE_HOME"
                )
            sources = {path.name: path.read_bytes() for path in sorted(_HERE.glob("*.[ch]"))}
            name = _name(sources)
            if (found := _kept(folder, name)) is None:
                _make(folder, name, sources)
                found = _kept(folder, name)
            if found is None:
                raise DeviceError(
                    f"what was just put in {folder} is not there; look who removes it"
                )
            return found, None
    except Exception as error:  # whatever it is, the plain forms run
        ours = isinstance(error, DeviceError)
        why = str(error) if ours else letters.sentence(letters.reason(error))
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
            return [os.path.abspath(found), *words[1:], *_FLAGS, f"{aim}=native"]
    return []


def _folder() -> Path:
    """Where libraries are kept."""
    if os.getuid() != os.geteuid():
        raise DeviceError("this process has another user's rights, and runs nothing of his files")
    named = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(named):  # as its standard wants it
        home = os.environ.get("HOME", os.path.expanduser("~"))
        if not os.path.isabs(home) or not os.path.isdir(home):
            raise DeviceError(f"the home folder {home!r} is none; set HOME or XDG_CACHE_HOME")
        named = os.path.join(home, ".cache")
    return Path(named, "diffusiongemma", "native")


def _name(sources: dict[str, bytes]) -> str:
    """What decides the library, as the beginning of its name."""
    command = _command()
    changed = str(os.stat(command[0]).st_mtime_ns)
    told = hashlib.sha256()
    for text in (*sources.values(), *map(os.fsencode, [*command, changed, _processor()])):
        told.update(len(text).to_bytes(8, "big") + text)
    return f"native-{told.hexdigest()[:20]}-"


def _processor() -> str:
    """What `native` means here."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    about = Path("/proc/cpuinfo")
    if about.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = about.read_text(errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join(facts)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _kept(folder: Path, name: str) -> ctypes.CDLL | None:
    """The library made before, if it is whole and opens; what is there in its place is removed."""
    for path in sorted(folder.glob(f"{name}*.so")):
        if (read := place.read_own(path)) is not None:
            if path.stem == f"{name}{_digest(read[1])}":
                with contextlib.suppress(OSError, AttributeError, DeviceError):
                    return _opened(folder, *read)
            else:
                os.close(read[0])
        path.unlink(missing_ok=True)
    return None


def _opened(folder: Path, number: int, content: bytes) -> ctypes.CDLL:
    """The calls of a library that was read from a descriptor.

    It is opened through that descriptor, so it is the one that was read. The descriptor stays
    open: a loader that is given the name of a library that it has will not look at another.
    """
    if _FILES.is_dir():
        found = ctypes.CDLL(str(_FILES / str(number)))
    else:
        os.close(number)
        with _aside(folder) as aside:
            place.write_own(aside / "native.so", content)
            found = ctypes.CDLL(str(aside / "native.so"))
    for call in (found.diffusiongemma_trunk, found.diffusiongemma_readout):
        call.restype, call.argtypes = ctypes.c_int, [ctypes.c_void_p]
    for call in (found.diffusiongemma_pairs, found.diffusiongemma_probe):
        call.restype, call.argtypes = ctypes.c_int, []
    if found.diffusiongemma_probe() != 1:
        raise DeviceError("the compiled library's sums are wrong")
    return found


def _make(folder: Path, name: str, sources: dict[str, bytes]) -> None:
    """Compile, try, and keep. The file appears whole or not at all.

    What is compiled is what was hashed, and nothing that the compiler left is kept or changed: its
    bytes are, once they did their work in a process that may die of them.
    """
    logger.info("compiling the steps of small networks for this processor (seconds, once)")
    with _aside(folder) as aside:
        for file, text in sources.items():
            place.write_own(aside / file, text)
        _run([*_command(), *_SOURCES, "-o", "made.so", "-lm"], _SECONDS, aside, "the compiler")
        made = place.read_own(aside / "made.so")
        if made is None:
            raise DeviceError("the compiler left no library; check CC")
        os.close(made[0])
        target = f"{name}{_digest(made[1])}.so"
        place.write_own(aside / target, made[1])
        python = os.fsdecode(spawn.get_executable())
        trial = [python, "-I", "-c", _TRY, f"./{target}"]
        what = "a first call of what the compiler made"
        if (said := _run(trial, _TRIAL_SECONDS, aside, what).strip()) != "it can":
            raise DeviceError(f"{what} said {said!r}")
        os.replace(aside / target, folder / target)
        settle(folder)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder of ours for a moment; the next who looks removes it if we are killed."""
    with scratch_beside(folder / "native") as scratch:
        (scratch / "aside").mkdir(0o700)
        yield scratch / "aside"


def _run(command: list[str], seconds: float, folder: Path, what: str) -> str:
    """What a command says; all that it started ends with it.

    Raises:
        DeviceError: it failed, or took too long.
    """
    told = bytearray()
    source, sink = os.pipe()

    def listen() -> None:
        while piece := os.read(source, _TOLD):
            told.extend(piece[: _TOLD - len(told)])
        os.close(source)

    try:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    finally:
        os.close(sink)
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
    status = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it started, too
        child.wait()
        listener.join(5.0)
    if status is None:
        raise DeviceError(f"{what} took over {seconds:g} seconds")
    text = bytes(told).decode(errors="replace")
    if status:
        lines = [line for line in text.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        raise DeviceError(
            f"{what} ended with {status}{': ' * bool(said)}{letters.first_line(said)}"
        )
    return text
