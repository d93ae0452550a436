"""What the network's doors refuse: ids, lengths and contexts that do not fit each other."""

import torch
from torch import Tensor

from diffusiongemma.core.device import on_host
from diffusiongemma.core.errors import ContextError, InputError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.context import Context


def ids(ids_BT: Tensor, config: ModelConfig) -> None:
    """Token ids are whole numbers of the vocabulary, in rows.

    Raises:
        InputError: they are not.
    """
    whole = not ids_BT.is_floating_point() and ids_BT.dtype != torch.bool
    if ids_BT.ndim != 2 or 0 in ids_BT.shape or not whole:
        raise InputError(
            f"token ids must be whole numbers of shape (rows, tokens), not empty, got "
            f"{tuple(ids_BT.shape)} of {ids_BT.dtype}"
        )
    if not on_host(ids_BT):
        return  # a look at the values would stall a GPU; its doors check on the host
    low, high = (int(edge) for edge in ids_BT.aminmax())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"token ids must lie in 0 to {config.vocab_size - 1}, got {low} to {high}")


def encode(lengths: list[int], tokens: int, context: Context) -> None:
    """A context can take so many tokens a row, of `tokens` that were given.

    Raises:
        InputError: lengths and rows do not fit each other.
        ContextError: a row has no room, or an earlier encode of it was interrupted.
    """
    if len(lengths) != len(context.rows):
        raise InputError(
            f"{len(lengths)} rows of tokens were given for a context of {len(context.rows)} rows"
        )
    if sum(lengths) == 0 or not all(0 <= n <= tokens for n in lengths):
        raise InputError(f"lengths must lie in 0 to {tokens}, not all of them 0, got {lengths}")
    if len({id(row) for row in context.rows}) < len(context.rows):
        raise ContextError("a context that holds a row twice can be read, not written")
    for number, (row, length) in enumerate(zip(context.rows, lengths, strict=True)):
        if row.torn:
            raise ContextError(
                f"an encode of row {number} was interrupted; truncate the row to 0 or make a "
                "new context"
            )
        if row.length + length > row.room:
            raise ContextError(
                f"row {number} holds {row.length} tokens and {length} more were given, but it "
                f"has room for {row.room}; shorten the prompt or make a larger context"
            )


def denoise(
    canvas_BL: Tensor, soft_BLD: Tensor | None, context: Context, config: ModelConfig
) -> None:
    """A canvas fits its rows, its expected embeddings and the longest context.

    Raises:
        InputError: shapes do not fit each other.
        ContextError: a row has no room, or an encode of it was interrupted.
    """
    rows, width = canvas_BL.shape
    if rows != len(context.rows):
        raise InputError(f"{rows} canvas rows were given for a context of {len(context.rows)} rows")
    expected = (rows, width, config.hidden_size)
    if soft_BLD is not None and soft_BLD.shape != expected:
        raise InputError(f"soft_BLD must have shape {expected}, got {tuple(soft_BLD.shape)}")
    longest = config.max_position_embeddings
    for number, row in enumerate(context.rows):
        if row.torn:
            raise ContextError(f"an encode of row {number} was interrupted; truncate it to 0")
        if row.length + width > longest:
            raise ContextError(
                f"row {number} holds {row.length} tokens; a canvas of {width} would pass the "
                f"longest context, {longest}"
            )


def whole_numbers(lengths_B: Tensor) -> list[int]:
    """The lengths of rows, for the host.

    Raises:
        InputError: they are none.
    """
    if lengths_B.ndim != 1 or lengths_B.is_floating_point():
        raise InputError(
            f"lengths must be whole numbers of shape (rows,), got {tuple(lengths_B.shape)} of "
            f"{lengths_B.dtype}"
        )
    return lengths_B.tolist()
