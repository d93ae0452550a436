"""Attention over keys and values in fixed buffers, whose lengths only the device knows.

Contract: that of `attention`, over buffers k, v of (B, K, C, H) of which row b has written the
indices up to end[b]. Lengths are tensors that are never read on the host, so that a captured step
sees the lengths of the moment when it is replayed.

The reference reads the lengths and attends row by row to exactly a row's keys, as `attention` does.
Where the host must not look, on a GPU without Triton, the whole buffer is masked instead.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.kernels.attention import TILE, attend, tiles


def write(
    buffer_BKCH: Float[Tensor, "B K C H"],
    new_BTKH: Float[Tensor, "B T K H"],
    at_B: Int[Tensor, " B"],
) -> None:
    """Put T tokens of each row into the buffer, from index at_B on."""
    rows, tokens, heads, width = new_BTKH.shape
    place_BT = at_B[:, None] + torch.arange(tokens, device=at_B.device)
    place = place_BT[:, None, :, None].expand(rows, heads, tokens, width)
    buffer_BKCH.scatter_(2, place, new_BTKH.transpose(1, 2).to(buffer_BKCH.dtype))


def attend_canvas(
    q_BLNH: Float[Tensor, "B L N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
) -> Float[Tensor, "B L N H"]:
    """Every query of a row sees the keys from first_B to before end_B."""
    parts = []
    ends = zip(first_B.tolist(), end_B.tolist(), strict=True)
    for row, (first, end) in enumerate(ends):
        parts.append(attend(q_BLNH[row], k_BKCH[row, :, first:end], v_BKCH[row, :, first:end]))
    return torch.stack(parts)


def attend_causal(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
    window: int | None,
    origin_B: Int[Tensor, " B"],
) -> Float[Tensor, "B T N H"]:
    """The last T tokens before end_B, already written, see themselves and what lies before.

    Args:
        q_BTNH: their queries.
        k_BKCH: keys.
        v_BKCH: values.
        first_B: the oldest index that may be seen.
        end_B: behind the last token.
        window: W, itself included; None sees all.
        origin_B: position of the token at index 0.
    """
    parts = []
    ends = zip(first_B.tolist(), end_B.tolist(), origin_B.tolist(), strict=True)
    for row, (first, end, origin) in enumerate(ends):
        k_KCH, v_KCH = k_BKCH[row, :, first:end], v_BKCH[row, :, first:end]
        parts.append(_text(q_BTNH[row], k_KCH, v_KCH, end + origin, window))
    return torch.stack(parts)


def _text(
    q_TNH: Tensor, k_KCH: Tensor, v_KCH: Tensor, end: int, window: int | None
) -> Float[Tensor, "T N H"]:
    """The last tokens of a text that ends at a position, tile by tile."""
    start, parts = end - len(q_TNH), []
    for tile in tiles(start, end, window):
        query_T = torch.arange(tile.origin, tile.origin + TILE, device=q_TNH.device)[:, None]
        key_C = torch.arange(tile.first, tile.end, device=q_TNH.device)
        mask = key_C <= query_T
        if window is not None:
            mask &= key_C > query_T - window
        queries = q_TNH[tile.start - start : tile.stop - start]
        parts.append(tile.attend(queries, k_KCH, v_KCH, mask, end))
    return torch.cat(parts)


def masked_canvas(
    q_BLNH: Float[Tensor, "B L N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
) -> Float[Tensor, "B L N H"]:
    """`attend_canvas` without a look at the host."""
    index = torch.arange(k_BKCH.shape[2], device=first_B.device)
    mask_BC = (index >= first_B[:, None]) & (index < end_B[:, None])
    return masked(q_BLNH, k_BKCH, v_BKCH, mask_BC[:, None])


def masked_causal(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
    window: int | None,
    origin_B: Int[Tensor, " B"],
) -> Float[Tensor, "B T N H"]:
    """`attend_causal` without a look at the host; where a row's index 0 stands changes nothing."""
    index = torch.arange(k_BKCH.shape[2], device=q_BTNH.device)
    own_BT = end_B[:, None] - q_BTNH.shape[1] + index[: q_BTNH.shape[1]]
    mask_BTC = (index <= own_BT[..., None]) & (index >= first_B[:, None, None])
    if window is not None:
        mask_BTC &= index > own_BT[..., None] - window
    return masked(q_BTNH, k_BKCH, v_BKCH, mask_BTC)


def masked(
    q_BTNH: Tensor, k_BKCH: Tensor, v_BKCH: Tensor, mask: Bool[Tensor, "B _ C"]
) -> Float[Tensor, "B T N H"]:
    """All of the buffer, most of it masked: slow, but its shape does not depend on lengths."""
    rows, tokens, heads, width = q_BTNH.shape
    groups = heads // k_BKCH.shape[1]
    q = q_BTNH.view(rows, tokens, -1, groups, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows, -1, groups * tokens, width)
    mask = mask.expand(rows, tokens, mask.shape[2]).repeat(1, groups, 1)
    out = F.scaled_dot_product_attention(q, k_BKCH, v_BKCH, attn_mask=mask[:, None], scale=1.0)
    out = out.view(rows, -1, groups, tokens, width).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, tokens, heads, width)
