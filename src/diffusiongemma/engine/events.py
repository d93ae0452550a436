"""What streams to who watches: a canvas refined, a canvas committed, the answer finished."""

from dataclasses import dataclass

from diffusiongemma.core.brief import Brief
from diffusiongemma.engine.reply import Reply


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Refined(Brief):
    """A step of a canvas. All tuples have one entry a position.

    Attributes:
        canvas: index of the canvas, from 0.
        step: number of the step, from 1.
        best: the most likely tokens; what would be committed now.
        entropy: how unsure the model is of each, in nats.
        accepted: whether the sampled token stays for the next step.
        revised: whether `best` is another token than at the step before.
        temperature: that the logits were divided by.
        before: the canvas that the network saw.
        after: the canvas that the next step will see: samples where accepted, noise elsewhere.
    """

    canvas: int
    step: int
    best: tuple[int, ...]
    entropy: tuple[float, ...]
    accepted: tuple[bool, ...]
    revised: tuple[bool, ...]
    temperature: float
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Committed(Brief):
    """A canvas has become part of the answer.

    Attributes:
        canvas: its index.
        tokens: what joins the answer.
        text: the text that is final now. It may lag behind the tokens by an incomplete character,
            a possible beginning of a stop string, or a call of a tool, whose words are text if it
            turns out to be none. The texts of all canvases are, joined, the reply's.
        thought: words of the thought that are final now; joined, the reply's thought.
    """

    canvas: int
    tokens: tuple[int, ...]
    text: str
    thought: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Finished(Brief):
    """The end."""

    reply: Reply


Event = Refined | Committed | Finished
