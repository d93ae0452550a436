"""What is odd about a checkpoint's files, as lines on standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from diffusiongemma.cli.output import say
from diffusiongemma.core.log import files


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"note: {record.getMessage()}", aside=True)


@contextmanager
def noted() -> Iterator[None]:
    """Show warnings of files for as long as this lasts."""
    notes = _Notes(logging.WARNING)
    files.addHandler(notes)
    try:
        yield
    finally:
        files.removeHandler(notes)
