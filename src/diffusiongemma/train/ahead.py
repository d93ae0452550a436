"""What steps learn from, made ahead of them by other processes.

Each process makes every Nth step's and hands it over through a pipe of its own, which holds less
than one: so the order is that of the steps, whatever N is, nobody runs far ahead, and a process
whose reader is gone, however it went, ends at its next word.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from diffusiongemma.core.errors import DeviceError, InputError

Made = TypeVar("Made")
_PATIENCE = 5.0  # seconds that a process has to end
# Whoever tells a run to end may tell its whole group; then the run decides how long it needs them.
_DEAF = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class Ahead(Generic[Made]):
    """A function of the step's number whose results are there already; use it in a `with`.

    Args:
        make: the function, which can be pickled: an object of a class that is found by its name.
        workers: N; 0 calls it here.
    """

    def __init__(self, make: Callable[[int], Made], workers: int) -> None:
        self._make, self._workers = make, workers
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._next = 0

    def __enter__(self) -> "Ahead[Made]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, first: int) -> None:
        """Begin with a step. Without it they begin when the first one is asked for."""
        self.close()
        self._next = first
        context = multiprocessing.get_context("spawn")
        with _deaf():
            for number in range(self._workers):
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work,
                    args=(self._make, there, first + number, self._workers),
                    name=f"ahead-{number}",
                )
                process.start()
                there.close()  # or the end of the process would not be seen here
                self._pipes.append(here)
                self._processes.append(process)

    def __call__(self, number: int) -> Made:
        """The result for a step; those for the ones after it are quick.

        Raises:
            InputError: it cannot be made.
            DeviceError: a process was ended by somebody else.
        """
        if self._workers == 0:
            return self._make(number)
        if not self._processes or number != self._next:
            self.start(number)
        pipe = self._pipes.pop(0)  # the first of them is the next one's
        self._pipes.append(pipe)
        try:
            made, why = pipe.recv()
        except (EOFError, OSError) as error:  # the second within a message
            raise DeviceError(
                f"a process that makes examples ended before step {number}; give it more memory, "
                "or use fewer workers"
            ) from error
        if why is not None:
            raise InputError(f"what step {number} learns from cannot be made: {why}")
        self._next = number + 1
        return made

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._pipes, self._processes = [], []


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here never hear these signals: they inherit what is blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which unblocks them, when a first process starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(make: Callable[[int], Any], pipe: Connection, first: int, stride: int) -> None:
    number = first
    with contextlib.suppress(OSError):  # whoever reads is gone
        while True:
            try:
                said: tuple[Any, str | None] = (make(number), None)
            except Exception as error:
                said = (None, f"{type(error).__name__}: {error}")
            pipe.send(said)
            if said[1] is not None:
                return
            number += stride
