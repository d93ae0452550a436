"""Which expert multiplies which tokens: routes sorted by expert and cut into tiles, on the device.

A route is one token on its way to one expert: number s * G + g for slot g of token s. The plan is
one launch of one program per expert, its shape known without a look at the data, so that it can be
part of a captured graph: a program counts the routes before its own, then writes its own in order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Int32
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

FIELDS = 3  # of a tile: expert, first place in the sorted order, routes (zero: an empty tile)

_BLOCK = 1024  # routes that a program looks at together; 2,048 of a canvas are two looks


class Plan(NamedTuple):
    """Routes sorted by expert.

    Attributes:
        route: the routes, those of one expert side by side, each expert's in ascending order.
        tile: expert, first place in `route` and number of routes of each tile; tiles of an expert
            follow each other, and some tiles are empty.
        block: routes that a tile can have.
    """

    route: Int32[Tensor, " routes"]
    tile: Int32[Tensor, "tiles 3"]
    block: int


def plan(expert_SG: Int[Tensor, "S G"], experts: int, block: int) -> Plan:
    """Sort the routes of all tokens, and cut them into tiles.

    Args:
        expert_SG: the experts of each token, each from 0 to `experts` - 1.
        experts: how many there are.
        block: routes that a tile can have.

    Returns:
        the plan: always routes // block + experts tiles, which is the most that can be needed.
    """
    expert_SG = expert_SG.contiguous()
    routes = expert_SG.numel()
    route = expert_SG.new_empty(routes, dtype=torch.int32)
    tile = expert_SG.new_empty(routes // block + experts, FIELDS, dtype=torch.int32)
    size = min(_BLOCK, max(16, triton.next_power_of_2(routes)))
    _plan[(experts,)](expert_SG, route, tile, routes, BLOCK_T=block, BLOCK=size, FIELDS=FIELDS)
    return Plan(route, tile, block)


@jit
def _plan(
    expert_ptr,
    route_ptr,
    tile_ptr,
    routes,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
    FIELDS: tl.constexpr,
):
    mine = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    own = tl.zeros([BLOCK], tl.int32)
    for start in range(0, routes, BLOCK):
        at = start + lane
        # A number that no program has stands behind the last route.
        expert = tl.load(expert_ptr + at, mask=at < routes, other=1 << 30).to(tl.int32)
        before += (expert < mine).to(tl.int32)
        own += (expert == mine).to(tl.int32)
    first = tl.sum(before)
    count = tl.sum(own)

    place = first
    for start in range(0, routes, BLOCK):
        at = start + lane
        expert = tl.load(expert_ptr + at, mask=at < routes, other=1 << 30).to(tl.int32)
        hit = (expert == mine).to(tl.int32)
        rank = tl.cumsum(hit, 0)
        tl.store(route_ptr + place + rank - 1, at, mask=expert == mine)
        place += tl.sum(hit)

    # An expert's tiles begin at first // BLOCK_T + its number. All experts before it fill at most
    # that many, so no program has to know how many tiles the others have.
    slot = first // BLOCK_T + mine
    after = (first + count) // BLOCK_T + mine + 1
    for s in range(slot, after):
        begin = first + (s - slot) * BLOCK_T
        rows = tl.maximum(0, tl.minimum(BLOCK_T, first + count - begin))
        tl.store(tile_ptr + s * FIELDS, mine)
        tl.store(tile_ptr + s * FIELDS + 1, begin)
        tl.store(tile_ptr + s * FIELDS + 2, rows)
