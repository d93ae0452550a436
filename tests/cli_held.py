"""The command, held by a test: an answer goes on by one event for each byte of a pipe, and stands
still once more when all of it was shown.

Whatever is on the screen stays there until the test has seen it, on the fastest machine and on the
busiest. The window's title tells how many bytes there were; it takes the same way as what is drawn,
so whoever reads it has seen all that was drawn before. Once the pipe is closed, nothing is held.

    python cli_held.py DESCRIPTOR WORD...
"""

import os
import select
import signal
import sys
from collections.abc import Iterator

from diffusiongemma.cli import show
from diffusiongemma.cli.main import main
from diffusiongemma.engine.events import Event
from diffusiongemma.engine.reply import Reply

LET = int(sys.argv.pop(1))
WOKEN, waker = os.pipe()
bytes_read = 0


def held(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, each when it may come."""
    global bytes_read
    try:
        while True:
            title(f"held at {bytes_read}")
            wait()
            bytes_read += len(os.read(LET, 1))
            event = next(events, None)
            if event is None:
                return
            yield event
    finally:
        title("not held")


def wait() -> None:
    """Until there is a byte. Ctrl-C ends it, even if it comes right before the wait begins."""
    while LET not in (ready := select.select([LET, WOKEN], [], [])[0]):
        os.read(ready[0], 1)


def finish_and_wait(self: show.Show, reply: Reply) -> None:
    """Show what is left of an answer, and stand still."""
    finish(self, reply)
    title("answered")
    wait()
    os.read(LET, 1)
    title("not held")


def title(text: str) -> None:
    """Write it on the window's frame."""
    os.write(2, f"\x1b]2;{text}\x07".encode())


os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)  # Python's handler runs after a system call; this ends the call
follow, finish = show.Show.follow, show.Show.finish
show.Show.follow = lambda self, events: follow(self, held(events))
show.Show.finish = finish_and_wait
show.FASTEST = 0.0  # every step is drawn, however fast they come
sys.exit(main())
