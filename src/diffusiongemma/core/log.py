"""One logger for the package: quiet unless the program that uses it says otherwise."""

import functools
import logging

from diffusiongemma.core.letters import sentence

logger = logging.getLogger("diffusiongemma")
logger.addHandler(logging.NullHandler())

files = logger.getChild("files")
"""Of what the files of a checkpoint hold. The command shows these warnings to its users."""


@functools.lru_cache(maxsize=1000)
def warn_once(text: str) -> None:
    """Warn of something in a file, in one line, and say the same no second time."""
    files.warning("%s", sentence(text))
