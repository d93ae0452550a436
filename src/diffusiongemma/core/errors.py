"""Every error that a user can cause, in six kinds.

Each kind is also a kind of the standard library, so callers who know nothing of this package can
still catch it. A message is one sentence or two: what is wrong, what was got, what to do. However
long or strange what was got is, the message is one line of bounded length that is safe to show. An
`assert` in this package means that we made the mistake; these classes mean that the input did.
"""

import difflib
from collections.abc import Iterable

from diffusiongemma.core.letters import brief, sentence


class DiffusionGemmaError(Exception):
    """The base of all errors that this package raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


class ConfigError(DiffusionGemmaError, ValueError):
    """A configuration file or object asks for something that this code cannot honour."""


class OptionError(DiffusionGemmaError, ValueError):
    """An option is unknown, out of range, or has no meaning here."""


class CheckpointError(DiffusionGemmaError, OSError):
    """Files of a checkpoint cannot be found, fetched, read, written, or do not fit the network."""


class InputError(DiffusionGemmaError, ValueError):
    """A prompt, message, image, or tensor given to a door is not one it can take."""


class ContextError(DiffusionGemmaError, RuntimeError):
    """A context has no room left, or cannot be cut back as far as was asked."""


class DeviceError(DiffusionGemmaError, RuntimeError):
    """This machine lacks the device or number format that was asked for."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """The sentence for a name that nobody knows, with the nearest known one.

    Args:
        kind: what the name is, such as `option`.
        got: the name that was given.
        known: the names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {brief(got)}; {hint}"
