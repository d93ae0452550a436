"""One logger for the package: quiet unless the program that uses it says otherwise."""

import functools
import logging

logger = logging.getLogger("diffusiongemma")
logger.addHandler(logging.NullHandler())

files = logger.getChild("files")
"""Of what the files of a checkpoint hold. The command shows these warnings to its users."""


@functools.lru_cache(maxsize=1000)
def warn_once(sentence: str) -> None:
    """Warn of something in a file, and say the same sentence no second time."""
    files.warning("%s", sentence)
