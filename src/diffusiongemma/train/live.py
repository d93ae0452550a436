"""A run, for people: one line that moves, and now and then what the network can do by now.

On a terminal the line is rewritten; elsewhere each report is a line of its own.
"""

import io
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from diffusiongemma.core.letters import visible
from diffusiongemma.engine.events import Finished, Refined
from diffusiongemma.engine.gemma import Gemma

LONGEST = 128  # tokens of a sample; a network that has just begun does not know when to end

Scored = tuple[str, Callable[[str], bool]]
"""A prompt, and whether an answer to it is right."""


class Live:
    """Shows the lines of a log as they come; give it to `train` as `report`, and close it.

    Args:
        steps: of the whole run.
        out: where to; standard error if not given.
    """

    def __init__(self, steps: int, out: io.TextIOBase | None = None) -> None:
        self._out: Any = sys.stderr if out is None else out
        self._bar: tqdm[Any] | None = None
        if self._out.isatty():
            self._bar = tqdm(total=steps, unit="step", file=self._out, dynamic_ncols=True)

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of the log."""
        least = min(share for layer in line["expert_share"] for share in layer)
        figures = (
            f"denoiser {line['denoiser']:.3f}  encoder {line['encoder']:.3f}  "
            f"norm {line['norm']:.2f}  least expert {100 * least:.1f} %  "
            f"{line['tokens_per_second']:,} tokens/s"
        )
        if self._bar is None:
            left = f"{line['left_minutes']} min left"
            print(f"step {line['step']:6}  {figures}  {left}", file=self._out, flush=True)
            return
        self._bar.n = line["step"]
        self._bar.set_postfix_str(figures, refresh=True)

    def say(self, text: str) -> None:
        """A line above the moving one."""
        if self._bar is None:
            print(text, file=self._out, flush=True)
        else:
            self._bar.write(text, file=self._out)


def samples(gemma: Gemma, prompts: Sequence[Scored], say: Callable[[str], None]) -> None:
    """Ask a few prompts and show each canvas as it stood after its first step and at the end.

    Args:
        gemma: the network in training, with its words.
        prompts: what to ask.
        say: shows a line.
    """
    chat = gemma.chat
    for prompt, right in prompts:
        drafts = []
        for event in gemma.stream(prompt, seed=0, max_new_tokens=LONGEST):
            match event:
                case Refined(step=1) if chat is not None:
                    drafts.append(visible(chat.tokenizer.decode(list(event.best))))
                case Finished(reply=reply):
                    mark = "right" if right(reply.text) else "wrong"
                    steps = sum(reply.stats.steps)
                    first, last = "".join(drafts), visible(reply.text)
                    say(f"  {prompt}  |  {first}  ->  {last}  ({steps} steps, {mark})")
