"""An answer on its way to a reader: live on a terminal, whole in a pipe, or as JSON.

Knows events and replies. How a terminal is steered is `screen`'s business.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from diffusiongemma.cli import canvas
from diffusiongemma.cli.output import as_json, give
from diffusiongemma.cli.screen import Screen, unheard
from diffusiongemma.cli.watching import Pace
from diffusiongemma.engine.events import Committed, Event, Finished, Refined
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.reply import Reply

FASTEST = 1 / 30  # seconds between two pictures of a canvas, at least; steps between are not drawn


class Show:
    """Shows one answer.

    Args:
        gemma: who answers.
        speaks_ids: show token ids and not their text.
        think: show the thought, too, on a terminal.
        live: show the answer while it grows, on a terminal.
        pace: of the steps of a canvas that is drawn; as they come if not given.
        figures: at a terminal, sum up how the answer came about.
    """

    def __init__(
        self,
        gemma: Gemma,
        *,
        speaks_ids: bool,
        think: bool,
        live: bool,
        pace: Pace | None = None,
        figures: bool = True,
    ) -> None:
        self._gemma, self._speaks_ids, self._think = gemma, speaks_ids, think
        self._screen = Screen()
        self._live = live and self._screen.shows_answer
        self._draws = self._live and self._screen.shows_canvas
        self._pace, self._figures = pace or Pace(0.0), figures
        self._look = canvas.Look.here(colour=self._screen.colour)
        self._next = 0.0  # when the canvas may be drawn again
        self._thought = self._said = ""

    def follow(self, events: Iterator[Event]) -> Reply:
        """Watch to the end. Canvas and status go away, whatever happens."""
        self._screen.status("reading the prompt")
        try:
            with unheard():
                for event in events:
                    match event:
                        case Refined():
                            self._refined(event)
                        case Committed():
                            self._committed(event)
                        case Finished(reply=reply):
                            return reply
        finally:
            self._screen.clear()
        raise AssertionError("a stream ends with Finished")

    def finish(self, reply: Reply) -> None:
        """What is left to print at the end: all of it where nothing was live."""
        text = " ".join(map(str, reply.tokens)) if self._speaks_ids else reply.text
        calls = [as_json(asdict(call)) for call in reply.tool_calls]
        if not self._live:
            give("\n".join([text, *calls] if text or not calls else calls))
        else:
            self._screen.end_line()
            self._screen.say("".join(f"{call}\n" for call in calls))
        if reply.stats.loop:
            self._screen.note(
                "warning: the answer seems to repeat itself; its speed means nothing, and another "
                "--seed may help"
            )
        if self._figures and self._screen.shows_status:
            self._screen.note(reply.summary)

    def stop(self, kept: str = "") -> None:
        """End an answer that was stopped, with all of its text that is kept."""
        if self._live:
            self._say(kept[len(self._said) :])
            self._screen.end_line()
        elif kept:
            give(kept)

    def _refined(self, event: Refined) -> None:
        if not self._draws:
            self._screen.status(_status(event))
            return
        self._pace.wait()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + FASTEST
        words = None if self._speaks_ids or self._gemma.chat is None else self._gemma.chat.tokenizer
        column, width, height = self._screen.room()
        lines = canvas.lines(
            canvas.texts(words, event.best),
            event.entropy,
            event.revised,
            look=self._look,
            column=column,
            width=width,
            height=height,
        )
        self._screen.draw(lines, _status(event))

    def _committed(self, event: Committed) -> None:
        if not self._live:
            return
        if self._draws:
            self._pace.wait()
        if self._speaks_ids:
            gap = " " if self._said and event.tokens else ""
            self._say(gap + " ".join(map(str, event.tokens)))
            return
        if self._think and not self._said:
            self._screen.say(event.thought, dim=True)
            self._thought += event.thought
        self._say(event.text)

    def _say(self, text: str) -> None:
        if text and self._thought and not self._said:
            self._screen.end_line()
        self._screen.say(text)
        self._said += text


def document(reply: Reply, gemma: Gemma, model: str) -> dict[str, Any]:
    """All that is known of an answer, for JSON."""
    return {
        "text": reply.text,
        "thought": reply.thought,
        "tool_calls": [asdict(call) for call in reply.tool_calls],
        "tokens": list(reply.tokens),
        "finish_reason": reply.finish_reason,
        "stats": reply.stats.as_dict(),
        "model": model,
        "device": {
            "name": str(gemma.device.device),
            "dtype": str(gemma.device.dtype).removeprefix("torch."),
            "reason": gemma.device.reason,
        },
    }


def _status(event: Refined) -> str:
    unsure = sum(event.entropy) / len(event.entropy)
    return f"canvas {event.canvas + 1}, step {event.step}, mean entropy {unsure:.3f}"
