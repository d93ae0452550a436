"""Being told to end: a verb unwinds, so that nothing half-written stays and keys are echoed again.

Knows the signals with which a system or a terminal that closes ends a process. Ctrl-C is Python's.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_NAMES = ("SIGTERM", "SIGHUP")
_SOON_S = 0.01


@contextmanager
def unwinding() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP raise SystemExit with 128 + their number.

    Where Python drops what is raised, as when something is being collected, they raise once more,
    and so does Ctrl-C: nobody sends a signal twice who sees it taken once.

    What is ignored (`nohup`) or handled by the caller stays so. Outside the main thread, where
    Python takes no handlers, it does nothing.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in _numbers() if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    before = sys.unraisablehook

    def dropped(found: "sys.UnraisableHookArgs") -> None:
        number = _number(found.exc_value)
        if number is None:
            before(found)
            return
        here = [True]  # where it would be dropped as well

        def again() -> None:
            time.sleep(_SOON_S)
            while here[0]:  # a busy machine may keep a process from going on for long
                time.sleep(_SOON_S)
            _thread.interrupt_main(signal.Signals(number))

        _thread.start_new_thread(again, ())
        here[0] = False

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _number(error: BaseException | None) -> int | None:
    """The signal behind what was raised, if one is."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if not isinstance(error, SystemExit):
        return None
    return next((number for number in _numbers() if error.code == 128 + number), None)
