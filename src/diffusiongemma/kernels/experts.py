"""Routed experts: each token passes through the few experts it was sent to.

Contract: out[s] = sum over g of weight[s, g] * down[e] @ (gelu_tanh(gate) * up), where gate and up
are the halves of gate_up[e] @ x[s] and e = expert[s, g]. Sums run over a token's experts in the
order of their number, in float32, rounded once. Row s depends on row s of the input alone, bit for
bit, whoever else is in the batch.

Reference: tokens are sorted by expert and each expert multiplies its own group.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.gated import gated, gated_at_once, gated_by_shares
from diffusiongemma.kernels.linear import CHUNK, OUTPUTS, ROWS, linear

# Products of a token and a gate_up weight, up to which every expert takes every token. In float32 a
# call is cheaper and a product dearer than in bfloat16, and it never paid.
_ALL = {torch.bfloat16: 1 << 23}
_BLOCK = 128  # tokens of one expert that multiply together in `blocked`
_FEW = 4  # experts for each that a token goes to, up to which copies of weights are few

Op = Callable[[Tensor, Tensor], Tensor]


def experts(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
    linear: Op = linear,
    gated: Op = gated,
) -> Float[Tensor, "S D"]:
    """Send every token through its experts and add up what comes back.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up: gate rows, then up rows, of each expert.
        down_EDF: the way back.
        linear: the product.
        gated: the activation.
    """
    order = expert_SG.reshape(-1).argsort(stable=True)
    counts = torch.bincount(expert_SG.reshape(-1), minlength=gate_up.shape[0]).tolist()
    source = order // expert_SG.shape[1]
    answers, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            group = x_SD[source[start : start + count]]
            gate, up = linear(group, gate_up[expert]).chunk(2, dim=-1)
            answers.append(linear(gated(gate, up), down_EDF[expert]))
            start += count
    weighted = torch.cat(answers).float() * weight_SG.reshape(-1)[order, None]
    return _summed(weighted, order, expert_SG, x_SD)


def blocked_if_few(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """For GPUs in float32: in blocks, unless that would be too many copies of weights."""
    given = (x_SD, expert_SG, weight_SG, gate_up, down_EDF)
    if len(gate_up) <= _FEW * expert_SG.shape[1]:
        return blocked(*given)
    return experts(*given, F.linear, gated_at_once)


def grouped(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """For GPUs without Triton, in bfloat16: torch's grouped product, without a look at the host."""
    flat = expert_SG.reshape(-1)
    order = flat.argsort(stable=True)
    experts_E = torch.arange(gate_up.shape[0], device=flat.device)
    ends = (flat[:, None] == experts_E).sum(0).cumsum(0).to(torch.int32)
    x = x_SD[order // expert_SG.shape[1]]
    gate, up = F.grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    answers = F.grouped_mm(gated(gate, up), down_EDF.transpose(1, 2), offs=ends)
    return _summed(answers.float() * weight_SG.reshape(-1)[order, None], order, expert_SG, x_SD)


def blocked(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """For small networks that train on a GPU: sizes do not depend on the routing, so that a step
    can be captured, and autograd can follow.

    Tokens are sorted by expert into blocks, each of one expert and filled up with what counts
    nothing; there is a block more for each expert than would do if all were full. Every block then
    multiplies with a copy of its expert's weights.
    """
    count, both, width = gate_up.shape
    slot_N, source, whose_K = _blocks(expert_SG, count)
    pick_KE = (whose_K[:, None] == torch.arange(count, device=x_SD.device)).to(x_SD.dtype)
    # A product, whose gradient is one: that of an index would be added up block by block.
    gate, up = (
        (pick_KE @ part.flatten(1)).view(-1, both // 2, width).transpose(1, 2)
        for part in gate_up.split(both // 2, dim=1)
    )
    down = (pick_KE @ down_EDF.flatten(1)).view(-1, width, both // 2).transpose(1, 2)
    x = x_SD.index_select(0, source).view(len(whose_K), -1, width)
    parts = (torch.bmm(x, part).flatten(0, 1) for part in (gate, up))
    hidden = gated_at_once(*parts).view(len(whose_K), -1, both // 2)
    answers = torch.bmm(hidden, down).view(-1, width)
    weight_N1 = weight_SG.reshape(-1, 1)
    chosen = answers.index_select(0, slot_N).float() * weight_N1
    return chosen.view(*expert_SG.shape, width).sum(1).to(x_SD.dtype)


def _blocks(expert_SG: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each token's copies lie in blocks of experts, without a look at the host.

    Returns:
        the row of each copy; the token in each row, the first in rows to spare; the expert of each
        block.
    """
    flat = expert_SG.reshape(-1)
    device, copies = flat.device, len(flat)
    mine_EN = flat == torch.arange(count, device=device)[:, None]
    copies_E = mine_EN.sum(1)
    blocks_E = (copies_E + _BLOCK - 1) // _BLOCK
    ends_E = blocks_E.cumsum(0)
    # A sum along all experts' copies, one after the other, is a copy's place if none is to spare.
    place_N = mine_EN.flatten().cumsum(0).view_as(mine_EN).gather(0, flat[None])[0] - 1
    spare_E = (ends_E - blocks_E) * _BLOCK - (copies_E.cumsum(0) - copies_E)
    slot_N = place_N + spare_E.gather(0, flat)
    most = -(-copies // _BLOCK) + count
    source = torch.zeros(most * _BLOCK, dtype=torch.int64, device=device)
    source.scatter_(0, slot_N, torch.arange(copies, device=device) // expert_SG.shape[1])
    place_K1 = torch.arange(most, device=device)[:, None]
    return slot_N, source, (place_K1 >= ends_E).sum(1).clamp(max=count - 1)


def sorted_experts(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """For CPUs: one buffer; each group begins at a multiple of four rows (see `linear`)."""
    if min(gate_up.shape[1], down_EDF.shape[1]) < OUTPUTS:
        return experts(x_SD, expert_SG, weight_SG, gate_up, down_EDF)
    expert_SG, place_SG = expert_SG.sort(dim=1)
    weight_SG = weight_SG.gather(1, place_SG)
    tokens, count = len(x_SD), gate_up.shape[0]
    if tokens % ROWS == 0 and tokens * gate_up.numel() <= _ALL.get(x_SD.dtype, 0):
        slot_SG = expert_SG * tokens + torch.arange(tokens)[:, None]
        return _gathered(_all(x_SD, gate_up, down_EDF), slot_SG, weight_SG)
    slot_SG, source, groups = _places(expert_SG, count)
    x = x_SD.index_select(0, source)
    hidden = x.new_empty(len(x), gate_up.shape[1])
    for expert, start, stop in groups:
        torch.mm(x[start:stop], gate_up[expert].t(), out=hidden[start:stop])
    gate, up = hidden.chunk(2, dim=-1)
    hidden = gated_by_shares(gate, up)
    for expert, start, stop in groups:
        torch.mm(hidden[start:stop], down_EDF[expert].t(), out=x[start:stop])
    return _gathered(x, slot_SG, weight_SG)


def _summed(weighted: Tensor, order: Tensor, expert_SG: Tensor, x_SD: Tensor) -> Tensor:
    # Back to the token's own slots, ordered by expert number, so that the order in which a
    # token's answers are added is the same in every batch.
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    slot_SG = slot.view(expert_SG.shape).sort(dim=1).values
    return weighted[slot_SG].sum(dim=1).to(x_SD.dtype)


def _all(x_SD: Tensor, gate_up: Tensor, down_EDF: Tensor) -> Tensor:
    """Every expert's answer to every token, (E S, D): for few tokens and small experts, where
    calls cost more than products. A row's bits are those of its group.
    """
    count, width = gate_up.shape[0], x_SD.shape[1]
    hidden = F.linear(x_SD, gate_up.view(-1, width)).view(len(x_SD) * count, -1)
    gate, up = hidden.chunk(2, dim=-1)
    hidden = gated_by_shares(gate, up).view(len(x_SD), count, -1).transpose(0, 1)
    return torch.bmm(hidden, down_EDF.transpose(1, 2)).view(-1, width)


def _places(expert_SG: Tensor, count: int) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """Where each token's copies lie in a buffer sorted by expert. Numpy, for its smaller calls.

    Args:
        expert_SG: the experts of each token, ascending.
        count: E.

    Returns:
        the places; the token that is copied to each row; (expert, first row, end) of each expert
        that has any.
    """
    tokens, chosen = expert_SG.shape
    flat = expert_SG.numpy().reshape(-1)
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat, minlength=count)
    padded = counts + -counts % ROWS
    starts = padded.cumsum() - padded
    slot = np.empty_like(order)
    slot[order] = np.arange(flat.size) + np.repeat(starts - counts.cumsum() + counts, counts)
    source = np.zeros(int(padded.sum()), dtype=np.int64)  # a group is padded with the first token
    source[slot] = np.arange(flat.size) // chosen
    ends = (starts + padded).tolist()
    both = zip(starts.tolist(), ends, strict=True)
    groups = [(expert, a, b) for expert, (a, b) in enumerate(both) if a < b]
    return torch.from_numpy(slot).view(tokens, chosen), torch.from_numpy(source), groups


def _gathered(answers: Tensor, slot_SG: Tensor, weight_SG: Tensor) -> Tensor:
    """The weighted sum of each token's answers, in the order of its slots."""
    width = answers.shape[1]
    out = answers.new_empty(slot_SG.shape[0], width)
    rows = max(1, CHUNK // width)
    for slot, weight, part in zip(
        slot_SG.split(rows), weight_SG.split(rows), out.split(rows), strict=True
    ):
        total = answers.index_select(0, slot[:, 0]).float().mul_(weight[:, :1])
        for g in range(1, slot.shape[1]):
            answer = answers.index_select(0, slot[:, g]).float()
            total.add_(answer.mul_(weight[:, g : g + 1]))
        part.copy_(total)
    return out
