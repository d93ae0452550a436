"""Who may look at whom. Every mask of the model is drawn here; a test parses these pictures.

Rows are queries, columns are keys, 1 means "may look". All masks are made for one row of a batch
from the positions of its queries and keys, so there is no padding to think of.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal(query_T: Int[Tensor, " T"], key_C: Int[Tensor, " C"]) -> Bool[Tensor, "T C"]:
    """A token sees itself and everything before it (encoder, full layers).

    Two tokens are in the context, three are encoded:

        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1
    """
    return key_C[None, :] <= query_T[:, None]


def window(query_T: Int[Tensor, " T"], key_C: Int[Tensor, " C"], size: int) -> Bool[Tensor, "T C"]:
    """A token sees itself and the `size` - 1 tokens before it (encoder, sliding layers).

    Two tokens are in the context, three are encoded, the window is 3:

        1 1 1 0 0
        0 1 1 1 0
        0 0 1 1 1
    """
    return causal(query_T, key_C) & (key_C[None, :] > query_T[:, None] - size)


def overlay(
    mask_TC: Bool[Tensor, "T C"], query_span_T: Int[Tensor, " T"], key_span_C: Int[Tensor, " C"]
) -> Bool[Tensor, "T C"]:
    """Tokens of one image also see each other, both ways, however far apart (encoder, all layers).

    The window of 3 above, six tokens encoded at once, the middle four of one image:

        1 0 0 0 0 0
        1 1 1 1 1 0
        1 1 1 1 1 0
        0 1 1 1 1 0
        0 1 1 1 1 0
        0 0 0 1 1 1

    Args:
        mask_TC: the causal or window mask.
        query_span_T: number of the image a query belongs to, -1 for text.
        key_span_C: the same for keys.
    """
    same = query_span_T[:, None] == key_span_C[None, :]
    return mask_TC | (same & (query_span_T >= 0)[:, None])


def canvas_sees(context_length: int, size: int | None) -> slice:
    """The context that a canvas reads, the same for every position of it (denoiser).

    A rectangle, neither a staircase nor a band: the canvas of three sees itself whole and, on
    sliding layers, the last `size` - 1 tokens of the context. Here the context has four tokens and
    the window is 3:

        0 0 1 1 1 1 1
        0 0 1 1 1 1 1
        0 0 1 1 1 1 1

    So there is no mask to build, only keys to leave out.

    Args:
        context_length: tokens encoded so far.
        size: the window, or None on full layers.
    """
    first = 0 if size is None else max(0, context_length - (size - 1))
    return slice(first, context_length)


def joint(
    clean: int, start: int, width: int, canvases: int, size: int | None
) -> Bool[Tensor, "S S"]:
    """All canvases of an example at once: [clean ; noised] (training).

    Clean tokens see as the encoder does. Each noised canvas sees itself, and what a context that
    ends just before it would show; neither its own clean tokens nor any other noised canvas. Here
    two tokens of prompt and two canvases of two, all clean; then the same canvases, noised; the
    window is 3:

        1 0 0 0 0 0  0 0 0 0
        1 1 0 0 0 0  0 0 0 0
        1 1 1 0 0 0  0 0 0 0
        0 1 1 1 0 0  0 0 0 0
        0 0 1 1 1 0  0 0 0 0
        0 0 0 1 1 1  0 0 0 0
        1 1 0 0 0 0  1 1 0 0
        1 1 0 0 0 0  1 1 0 0
        0 0 1 1 0 0  0 0 1 1
        0 0 1 1 0 0  0 0 1 1

    Args:
        clean: tokens of the clean sequence, padding included: nothing real comes after padding, so
            causality alone hides it.
        start: where the first canvas begins in it.
        width: L.
        canvases: how many.
        size: the window, or None on full layers.
    """
    place = torch.arange(clean)
    reads = causal(place, place) if size is None else window(place, place, size)
    whose = torch.arange(canvases).repeat_interleave(width)
    end = (start + whose * width)[:, None]
    shows = place[None] < end
    if size is not None:
        shows &= place[None] >= end - (size - 1)
    own = whose[:, None] == whose[None]
    top = torch.cat([reads, torch.zeros(clean, len(whose), dtype=torch.bool)], dim=1)
    return torch.cat([top, torch.cat([shows, own], dim=1)])


def spans(is_image_T: Bool[Tensor, " T"]) -> Int[Tensor, " T"]:
    """Number the runs of image tokens 0, 1, 2 ... in order; text is -1."""
    before = torch.cat([is_image_T.new_zeros(1), is_image_T[:-1]])
    number = (is_image_T & ~before).long().cumsum(0) - 1
    return torch.where(is_image_T, number, -1)


def packed(
    place_BS: Int[Tensor, "B S"],
    upto_BS: Int[Tensor, "B S"],
    text_BS: Int[Tensor, "B S"],
    canvas_BS: Int[Tensor, "B S"],
    size: int | None,
) -> Bool[Tensor, "B S S"]:
    """Several texts and their noised canvases in one row, in any order (training).

    Each text is as in `joint`, and none sees another. Here one of two tokens of prompt and a canvas
    of two, clean, then noised; and one of a token of prompt; the window is 3:

        1 0 0 0  0 0   0 0 0  0 0
        1 1 0 0  0 0   0 0 0  0 0
        1 1 1 0  0 0   0 0 0  0 0
        0 1 1 1  0 0   0 0 0  0 0
        1 1 0 0  1 1   0 0 0  0 0
        1 1 0 0  1 1   0 0 0  0 0
        0 0 0 0  0 0   1 0 0  0 0
        0 0 0 0  0 0   1 1 0  0 0
        0 0 0 0  0 0   1 1 1  0 0
        0 0 0 0  0 0   1 0 0  1 1
        0 0 0 0  0 0   1 0 0  1 1

    Args:
        place_BS: position of each token in its text.
        upto_BS: how many clean tokens of its text lie before the first that it may not see.
        text_BS: number of its text within the row.
        canvas_BS: number of its canvas within the row; -1 for a clean token.
        size: the window, or None on full layers.
    """
    drafts_BS = canvas_BS >= 0
    shows = place_BS[:, None] < upto_BS[..., None]
    if size is not None:
        from_BS = upto_BS - torch.where(drafts_BS, size - 1, size)
        shows &= place_BS[:, None] >= from_BS[..., None]
    shows &= (text_BS[:, None] == text_BS[..., None]) & ~drafts_BS[:, None]
    own = (canvas_BS[:, None] == canvas_BS[..., None]) & drafts_BS[..., None]
    return shows | own
