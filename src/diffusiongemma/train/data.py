"""Examples -> padded batches.

An example is a function of its number, so the place in the data is the step number, and a resumed
run sees what the unbroken one would have seen. Canvases begin where the answer begins; the last one
is filled up with the end mark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffusiongemma.core.errors import InputError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.train.objective import Batch


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer, as token ids; the answer ends with its end-of-turn mark."""

    prompt: Sequence[int]
    answer: Sequence[int]


Source = Callable[[int], Example]
"""The example of a number, the same whenever it is asked for."""


def pack(examples: Sequence[Example], width: int, eos: int, pad: int) -> Batch:
    """Lay prompts and canvases side by side and pad.

    Args:
        examples: of one batch.
        width: L.
        eos: fills the last canvas of each answer, and is learned.
        pad: fills what is not of the example, and is neither read nor learned.

    Raises:
        InputError: an example without prompt or answer.
    """
    if any(len(e.prompt) == 0 or len(e.answer) == 0 for e in examples):
        raise InputError("an example needs a prompt and an answer of at least one token each")
    counts = [-(-len(e.answer) // width) for e in examples]
    most = max(counts)
    rows = []
    for example, count in zip(examples, counts, strict=True):
        filled = [*example.answer, *[eos] * (count * width - len(example.answer))]
        rows.append([*example.prompt, *filled, *[pad] * ((most - count) * width)])
    longest = max(map(len, rows))
    clean = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    return Batch(
        clean_BT=clean,
        starts=tuple(len(e.prompt) for e in examples),
        canvas_BK=torch.arange(most)[None] < torch.tensor(counts)[:, None],
        width=width,
    )


def check(batch: Batch, config: ModelConfig) -> None:
    """Refuse a batch that the network cannot read.

    Raises:
        InputError: it is longer than the context, or holds what is no id of the vocabulary.
    """
    clean_BT, longest = batch.clean_BT, config.max_position_embeddings
    if clean_BT.shape[1] > longest:
        raise InputError(
            f"an example has {clean_BT.shape[1]} tokens with its canvases, and the context of this "
            f"model holds {longest}; leave it out or cut it"
        )
    if not 0 <= int(clean_BT.min()) <= int(clean_BT.max()) < config.vocab_size:
        raise InputError(
            f"an example holds what is no token id from 0 to {config.vocab_size - 1}; was it made "
            "with this model's tokenizer?"
        )
