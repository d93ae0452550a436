"""The cage around a chat template: a process with limits that stays, and is asked through a pipe.

Knows how such a process is started, fed, timed and ended, and what it means when it dies. Does not
know jinja2, which only `caged.py` inside it does, or messages.

A template is code from a stranger. Beside jinja2's sandbox its process has an end of processor time
and memory, no environment, and no file, network or further process to open. One that meets a limit
is ended with all it holds, and the next request gets a new one. Where no Python can be started,
templates are rendered in this process without limits: a warning says so, and `place` does.
"""

import contextlib
import errno
import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import DeviceError
from diffusiongemma.core.log import logger

Answer = tuple[str, str]
"""A kind, and a text or a reason."""

# Processor time beyond `Limits.seconds`, five and more times what was met on one core of an EPYC:
# 0.4 us for each pair of messages in a template that looks over the whole history at each of them
# (2 us where `caged.py` cannot shorten that), 1.6 us for a byte of deep arguments, 4 us to compile
# a letter.
_PER_PAIR = 1e-5
_PER_BYTE = 8e-6
_PER_LETTER = 2e-5
# A template writes what it was given and marks around it.
_LETTERS, _LETTERS_PER_BYTE = 1 << 18, 16

_STOPPED = ("time", "memory", "size", "dead")
_KEPT = 4  # processes of one template that wait for the next request
_PROGRAM = "import sys; sys.path += sys.argv[1:]; import caged; caged.main()"
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # without which none may start
_FOR_GOOD = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may take.

    Attributes:
        seconds: processor time for a short prompt; a long one has more, by its messages and bytes.
        megabytes: memory of its process, in 2**20 bytes.
    """

    seconds: float = 1.0
    megabytes: int = 512


class Cage:
    """One template, in as many processes as threads ask for at the same time.

    May be shared between threads, and used after a fork, which starts processes of its own. They
    end with this object, and when this process does.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._idle: list[_Process | _Here] = []

    def compile(self) -> Answer:
        """`ready`; or `syntax` or `broken`, with the reason.

        Raises:
            DeviceError: the system refuses one more process.
        """
        process = self._take()
        self._put(process, process.compiled[0] == "ready")
        return process.compiled

    def render(self, variables: Mapping[str, Any]) -> Answer:
        """What the template makes of JSON values.

        One of `text`; `refused`, `forbidden` or `failed`, with the reason; `stopped`, with the
        limit that was met; what `compile` says of a template that cannot be rendered.

        Raises:
            DeviceError: the system refuses one more process.
            ValueError: a value cannot be written as JSON.
        """
        body = json.dumps(variables)
        most = max((len(v) for v in variables.values() if isinstance(v, list)), default=0)
        seconds = self._limits.seconds + _PER_BYTE * len(body) + _PER_PAIR * most**2
        letters = _LETTERS + _LETTERS_PER_BYTE * len(body)
        head = {"seconds": seconds, "characters": letters, "now": datetime.now().isoformat()}
        request = f'{json.dumps(head)[:-1]}, "variables": {body}}}'
        while True:
            process = self._take()
            if process.compiled[0] != "ready":
                process.end()
                return process.compiled
            kept = process.kept
            try:
                answer = process.ask(request, letters)
            except BaseException:  # the rest of an answer may still come
                process.end()
                raise
            self._put(process, answer[0] not in _STOPPED)
            if answer[0] != "dead" or not kept:  # else it was killed while it waited
                return _plain(answer, seconds, self._limits.megabytes, letters)

    def _take(self) -> "_Process | _Here":
        with contextlib.suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.alive():
                    return process
        return _start(self._source, self._limits)

    def _put(self, process: "_Process | _Here", sound: bool) -> None:
        if sound and len(self._idle) < _KEPT:
            process.kept = True
            self._idle.append(process)
        else:
            process.end()


def place() -> str:
    """Where templates are rendered, and within which limits; a process is started to see."""
    process = _start("", Limits())
    process.end()
    if isinstance(process, _Here):
        return f"in this process, without limits: {_Found.reason}"
    lacking = {"memory", "time"} - process.limits
    if not lacking:
        return "in a process of their own, limited in memory and time"
    return f"in a process of their own; this system does not limit its {' or '.join(lacking)}"


def _plain(answer: Answer, seconds: float, megabytes: int, letters: int) -> Answer:
    """An answer, or the limit behind it as a sentence has it."""
    if answer[0] not in _STOPPED:
        return answer
    limits = {
        "time": f"{seconds:.1f} seconds of processor time",
        "memory": f"{megabytes} MB of memory",
        "size": f"{letters} characters",
        "dead": f"the end of its process by {answer[1]}",
    }
    return "stopped", limits[answer[0]]


class _Found:
    """Whether processes can be started here; asked once."""

    works = False
    reason = ""


class _NoPythonError(Exception):
    """No process can be started here, now or later."""


def _start(source: str, limits: Limits) -> "_Process | _Here":
    if not _Found.reason:
        try:
            process = _Process(source, limits)
            _Found.works = True
            return process
        except _NoPythonError as error:
            if _Found.works:
                raise DeviceError(
                    f"the process for chat templates no longer starts ({error}); is Python being "
                    "updated? Start this program again"
                ) from error
            _Found.reason = str(error)
            logger.warning("chat templates run without limits of time and memory: %s", error)
    return _Here(source)


class _Here:
    """The same in this process, where there is no other way."""

    kept = False

    def __init__(self, source: str) -> None:
        from diffusiongemma.dialog import caged

        self._renderer = caged.Renderer(source)
        self.compiled = self._renderer.compiled

    def ask(self, request: str, letters: int) -> Answer:
        return self._renderer.render(json.loads(request))

    def alive(self) -> bool:
        return True

    def end(self) -> None:
        pass


_LIVING: "weakref.WeakSet[_Process]" = weakref.WeakSet()


class _Process:
    """One process, which belongs to one thread at a time.

    Attributes:
        limits: those that the system keeps: `memory`, `time`.
        compiled: what became of the template.
        kept: whether it has answered before.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        command = _command()
        try:
            self._popen = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=os.path.abspath(os.sep),
                env={name: os.environ[name] for name in _INHERITED if name in os.environ},
                start_new_session=True,  # Ctrl-C at the terminal is none of its business
            )
        except OSError as error:
            if error.errno in _FOR_GOOD:
                raise _NoPythonError(f"'{command[0]}' does not start ({error.strerror})") from error
            raise DeviceError(
                f"the process for chat templates cannot be started ({error.strerror}); close "
                "other programs or raise the limit, and try again"
            ) from error
        self.kept = False
        self._owner = os.getpid()
        self._at_end = weakref.finalize(self, _end, self._popen, self._owner)
        _LIVING.add(self)
        seconds = limits.seconds + _PER_LETTER * len(source)
        first = {"source": source, "seconds": seconds, "megabytes": limits.megabytes}
        kind, said = self.ask(json.dumps(first), 0)
        if said.startswith("signal"):
            raise DeviceError(
                f"the process for chat templates was ended by {said} as it started; has this "
                "machine memory left? Try again"
            )
        if kind != "hello":
            raise _NoPythonError(f"'{command[0]}' ends at once ({said})")
        self.limits = set(said.split())
        self.compiled = _plain(self._hear(0), seconds, limits.megabytes, 0)
        if self.compiled[0] == "stopped":
            self.compiled = ("broken", f"stopped at {self.compiled[1]}")

    def ask(self, request: str, letters: int) -> Answer:
        """An answer of at most so many letters; `time` or `dead` where the process ended."""
        body = request.encode()
        left = memoryview(struct.pack(">I", len(body)) + body)
        assert self._popen.stdin is not None
        try:
            while left:
                left = left[self._popen.stdin.write(left) :]
        except BrokenPipeError:
            return self._death()
        return self._hear(letters)

    def _hear(self, letters: int) -> Answer:
        head = self._read(4)
        size = struct.unpack(">I", head)[0] if len(head) == 4 else 0
        # What comes from inside is not believed either: JSON has up to twelve bytes for a letter.
        body = self._read(size) if size <= 12 * letters + 20_000 else b""
        if not size or len(body) < size:
            return self._death()
        try:
            kind, text = json.loads(body)
        except (ValueError, TypeError):
            return self._death()
        return str(kind), str(text)

    def _read(self, size: int) -> bytes:
        assert self._popen.stdout is not None
        parts = []
        while size and (part := self._popen.stdout.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _death(self) -> Answer:
        self.end()
        code = self._popen.returncode
        if code == -getattr(signal, "SIGPROF", 0):
            return "time", ""
        return "dead", f"signal {-code}" if code < 0 else f"status {code}"

    def alive(self) -> bool:
        """Whether it can be asked, by this process and not only by the one it was forked from."""
        return self._owner == os.getpid() and self._popen.poll() is None

    def end(self) -> None:
        self._at_end()

    def disown(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._at_end.detach()
        _close(self._popen)
        self._popen.returncode = 0  # else the interpreter warns of a process left behind


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        _close(process)
        process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _after_fork() -> None:
    for process in list(_LIVING):
        process.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _command() -> list[str]:
    """How to start the process: isolated, and with nothing to import but what it needs."""
    program = Path(__file__).with_name("caged.py")
    if getattr(sys, "frozen", False) or not program.is_file():
        raise _NoPythonError("this program is packed, and has no Python beside it")
    # A server that embeds Python names itself here.
    known = (Path(sys.executable or ""), Path(sys.exec_prefix) / "bin" / "python3")
    for python in known:
        if re.match("(?i)python|pypy", python.name) and python.is_file():
            break
    else:
        raise _NoPythonError(f"there is no Python at '{known[0]}' or '{known[1]}'")
    roots = [program.parent]
    for name in ("jinja2", "markupsafe"):
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        roots.append(Path(found.origin).parent.parent)
    options = ["-I", "-S", "-X", "utf8"]
    return [str(python.absolute()), *options, "-c", _PROGRAM, *map(str, dict.fromkeys(roots))]
