"""Being told to end: a verb unwinds, so that nothing half-written stays and keys are echoed again.

Knows the signals with which a system or a terminal that closes ends a process. Ctrl-C is Python's.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_NAMES = ("SIGTERM", "SIGHUP")


@contextmanager
def unwinding() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP raise SystemExit with 128 + their number.

    What is ignored (`nohup`) or handled by the caller stays so. Outside the main thread, where
    Python takes no handlers, it does nothing.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
