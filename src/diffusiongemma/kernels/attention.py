"""Attention of one row's queries over the keys that this row can see.

Contract: softmax(q @ k.T) @ v with scale 1 (queries and keys are normed, so Gemma divides by
nothing), softmax in float32, query heads shared evenly among key heads. `mask_TC` is True where a
query may look; None means everywhere. Output in the dtype of the queries.

It is called with exactly a row's keys: they are never padded, so neighbours in a batch cannot
change a row's bits. Only rows with equally many keys may share a call.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q_TNH: Float[Tensor, "T N H"],
    k_KCH: Float[Tensor, "K C H"],
    v_KCH: Float[Tensor, "K C H"],
    mask_TC: Bool[Tensor, "T C"] | None = None,
) -> Float[Tensor, "T N H"]:
    """Attend from T queries to C keys.

    Query head n reads key head n // (N / K). The heads of one group are folded into the query
    axis, so keys and values are never repeated in memory.
    """
    tokens, heads, width = q_TNH.shape
    groups = heads // k_KCH.shape[0]
    q = q_TNH.view(tokens, -1, groups, width).permute(1, 2, 0, 3)
    q = q.reshape(1, -1, groups * tokens, width)
    mask = None if mask_TC is None else mask_TC.repeat(groups, 1)
    out = F.scaled_dot_product_attention(q, k_KCH[None], v_KCH[None], attn_mask=mask, scale=1.0)
    return out.view(-1, groups, tokens, width).permute(2, 0, 1, 3).reshape(tokens, heads, width)


def attend_alike(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
) -> Float[Tensor, "B T N H"]:
    """`attend` for several rows that have equally many keys, and see all of them; the same bits."""
    rows, tokens, heads, width = q_BTNH.shape
    groups = heads // k_BKCH.shape[1]
    q = q_BTNH.view(rows, tokens, -1, groups, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows, -1, groups * tokens, width)
    out = F.scaled_dot_product_attention(q, k_BKCH, v_BKCH, scale=1.0)
    out = out.view(rows, -1, groups, tokens, width).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, tokens, heads, width)


def attend_rows(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BTKH: Float[Tensor, "B T K H"],
    v_BTKH: Float[Tensor, "B T K H"],
    mask_BTT: Bool[Tensor, "B T T"] | Float[Tensor, "B T T"],
) -> Float[Tensor, "B T N H"]:
    """Self-attention of many rows of one length in one call, for training.

    The same contract, but the bits of a row may depend on the others, and keys and values are
    repeated, as a mask for each query head would be larger. The mask may be one to add: 0 and minus
    infinity.
    """
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    q = q_BTNH.transpose(1, 2)
    k, v = (part.repeat_interleave(groups, dim=2).transpose(1, 2) for part in (k_BTKH, v_BTKH))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTT[:, None], scale=1.0)
    return out.transpose(1, 2)
