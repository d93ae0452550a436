"""Being told to end: signals are noted when they come, and looked at between steps.

So no step, average or sample is ever cut in two. Ctrl-C, a terminal that closes and a system that
ends the process are all the same here; a second one does not wait.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """While it is open, the first signal is noted, and the second raises.

    When it closes, the handlers are the caller's again, and a signal that was noted raises:
    KeyboardInterrupt for SIGINT, SystemExit with 128 + its number for the others. What the caller
    ignores (`nohup`) stays ignored. Outside the main thread, where Python takes no handlers, it
    does nothing.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._closing = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._noted is not None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):  # None: not Python's, nor ours to restore
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        for number, before in self._before.items():
            signal.signal(number, before)
        if error is None and self._noted is not None:
            raise _end(self._noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._closing:
            self._noted = self._noted or number
        elif self._noted is not None:
            raise _end(number)
        else:
            self._noted = number
            name = signal.Signals(number).name
            _say(f"\n{name}: training ends after this step, which is saved; once more, and it ")
            _say("ends at once and saves nothing\n")


def _end(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _say(text: str) -> None:
    """Past all buffers: the signal may have come while one of them was being written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), text.encode())
