"""The command: a verb is called, and a failure told in one line.

Knows exit codes; which verb is meant, `verbs` knows, and each verb's module its flags and work.
Modules that need torch are imported by the verb that needs them, so that `--help` is quick; the
others as the command begins, where Ctrl-C finds somebody who knows what to do.

Exit codes: 0 done, 1 a mistake of ours, 2 a mistake in the input or a lack of this machine,
129 and 143 the system said to end, 130 Ctrl-C, 141 whoever read the output went away.
"""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the command's name; those of this process if not given.

    Returns:
        The exit code.
    """
    # Threads that spin while they wait bring a busy machine to its knees: two runs on two cores
    # took 29 s each, and 2.2 s with this. It has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if argv is None else argv)
    _take_places()
    if sys.stderr is None:  # closed by whoever called; complaints must not end up elsewhere
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for letters that its encoding lacks
    try:
        from diffusiongemma.cli.ending import unwinding
        from diffusiongemma.cli.notes import noted

        try:
            with unwinding(), noted():
                code = _dispatch(words)
        except SystemExit as stop:  # --help, --version, and a signal
            code = int(stop.code or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except Exception as error:
        _drop_output()
        code = _complain(error, debug="--debug" in words)
        _drop_output()
        return code


def _take_places() -> None:
    """Where a standard stream is closed, see that no file of ours gets its number: what a library
    writes there, such as a warning, would end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _dispatch(words: list[str]) -> int:
    from diffusiongemma.cli.verbs import meant, module

    verb, rest = meant(words)
    work = module(verb)
    return work.run(work.parser().parse(rest))


def _complain(error: Exception, *, debug: bool) -> int:
    """Say what went wrong, in one line."""
    from diffusiongemma.cli.output import say
    from diffusiongemma.core.letters import sentence

    said, code = _sentence(error)
    with contextlib.suppress(OSError):  # a full disk, which is no mistake of ours
        if debug:
            say("".join(traceback.format_exception(error)).rstrip(), aside=True)
        say(f"error: {sentence(said)}", aside=True)
    return code


def _sentence(error: Exception) -> tuple[str, int]:
    from diffusiongemma.core.errors import DiffusionGemmaError
    from diffusiongemma.core.letters import reason

    if isinstance(error, DiffusionGemmaError):
        return str(error), 2
    # By name: torch's class must not be imported to tell that it was not this one.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory ({error}); give a shorter prompt or another --device, and see what "
            "fits with `diffusiongemma doctor`",
            2,
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"the system refused: {error.strerror or error}{where}", 2
    return (
        f"this is a mistake of ours ({reason(error)}); run it again with --debug and report what "
        "it prints",
        1,
    )


def _drop_output() -> None:
    """Flush what can be written; what cannot is forgotten, or Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
