"""The exactness suite can fail: each mistake that others made is made here, and is seen.

Each break is one that a port of this model has shipped with. The size of the difference is printed
at the end of the run, beside the allowance that it exceeds.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import toys
from diffusiongemma.kernels import norm_rope, readout
from diffusiongemma.kernels.attention import attend
from diffusiongemma.model import attention, block, experts, masks, passes, selfcond
from diffusiongemma.model import model as network
from parity_oracle import Denoise, Dice, Encode, Script, furthest, play_hf, play_ours

pytestmark = pytest.mark.usefixtures("plain")

TOY = toys.Toy(seed=1)


def encoder_scalars_for_both(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(passes.Denoise, "scale", passes.Encode.scale)


def denoiser_scalars_for_both(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(passes.Encode, "scale", passes.Denoise.scale)


def canvas_sees_w_tokens(patch: pytest.MonkeyPatch) -> None:
    right = masks.canvas_sees
    patch.setattr(
        masks, "canvas_sees", lambda n, size: right(n, None if size is None else size + 1)
    )


def encoder_window_one_wider(patch: pytest.MonkeyPatch) -> None:
    right = masks.window
    patch.setattr(masks, "window", lambda q, k, size: right(q, k, size + 1))


def band_for_the_rectangle(patch: pytest.MonkeyPatch) -> None:
    """A symmetric window around each canvas position, as vLLM draws it."""

    def attend_in_band(self, layer, q, k, v):
        store = self.context.rows[0].stores[layer]
        length, width = self.context.rows[0].length, self.width
        seen = store.read(masks.canvas_sees(length, store.window).start)
        keys, values = k.transpose(0, 1), v.transpose(0, 1)
        if seen is not None:
            keys, values = torch.cat([seen[0], keys], 1), torch.cat([seen[1], values], 1)
        query = torch.arange(length, length + width)
        key = torch.arange(length + width - keys.shape[1], length + width)
        near = (query[:, None] - key[None]).abs() < (store.window or 10**9)
        return attend(q, keys, values, near)

    patch.setattr(passes.Denoise, "attend", attend_in_band)


def values_not_normed(patch: pytest.MonkeyPatch) -> None:
    right = attention.Attention.forward

    def forward(self, x, ops, turn, through):
        def rms_norm(x, weight, eps):
            return x if weight is None else ops.rms_norm(x, weight, eps)

        return right(self, x, dataclasses.replace(ops, rms_norm=rms_norm), turn, through)

    patch.setattr(attention.Attention, "forward", forward)


def values_after_the_key_norm(patch: pytest.MonkeyPatch) -> None:
    """On full layers V is the key projection before its norm."""
    right = attention.Attention.forward

    def forward(self, x, ops, turn, through):
        if self.v is not None:
            return right(self, x, ops, turn, through)
        count, eps = x.shape[0], self.q_norm.eps
        q, k = (part(x, ops).view(count, -1, self.head_dim) for part in (self.q, self.k))
        v = ops.rms_norm(self.k_norm(k, ops), None, eps)
        q = ops.norm_rope(q, self.q_norm.weight, eps, turn)
        k = ops.norm_rope(k, self.k_norm.weight, eps, turn)
        return self.o(through.attend(self.number, q, k, v).reshape(count, -1), ops)

    patch.setattr(attention.Attention, "forward", forward)


def router_reads_the_expert_norm(patch: pytest.MonkeyPatch) -> None:
    right = block.Block.forward

    def forward(self, x, ops, turn, through):
        router = self.router.forward

        def normed(residual, ops):
            return router(self.before_experts(residual, ops), ops)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self.router, "forward", normed)
            return right(self, x, ops, turn, through)

    patch.setattr(block.Block, "forward", forward)


def softcap_after_the_temperature(patch: pytest.MonkeyPatch) -> None:
    """The cap's place: on the logits of a step as the sampler sees them."""
    heat = 0.7

    def softcapped(hidden, table, cap, linear):
        return torch.tanh(linear(hidden, table).float() / heat / cap) * cap * heat

    patch.setattr(readout, "softcapped", softcapped)


def no_softcap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(readout, "softcapped", lambda h, table, cap, linear: linear(h, table).float())


def no_self_conditioning_at_step_one(patch: pytest.MonkeyPatch) -> None:
    right = selfcond.SelfConditioning.forward
    patch.setattr(
        selfcond.SelfConditioning,
        "forward",
        lambda s, e, soft, ops: right(s, e, soft, ops) if soft.any() else e,
    )


def no_image_overlay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "overlay", lambda mask, query, key: mask)


def overlay_within_the_window(patch: pytest.MonkeyPatch) -> None:
    right = masks.overlay

    def overlay(mask, query, key):
        place_q = torch.arange(len(query)) + len(key) - len(query)
        near = (place_q[:, None] - torch.arange(len(key))[None]).abs() < TOY.window
        return mask | (right(mask, query, key) & near)

    patch.setattr(masks, "overlay", overlay)


def whole_head_turns(patch: pytest.MonkeyPatch) -> None:
    right = norm_rope.frequencies
    patch.setattr(network, "frequencies", lambda h, theta, part, dev: right(h, theta, 1.0, dev))


def partial_head_as_its_own_rope(patch: pytest.MonkeyPatch) -> None:
    """Frequencies spaced over the turning quarter instead of over the whole head."""

    def frequencies(width, theta, partial, device):
        turning = int(partial * width // 2)
        pace = 1.0 / theta ** (torch.arange(turning) / turning)
        return F.pad(pace, (0, width // 2 - turning))

    patch.setattr(network, "frequencies", frequencies)


def experts_without_their_scale(patch: pytest.MonkeyPatch) -> None:
    right = experts.Router.forward

    def forward(self, residual, ops):
        number, share = right(self, residual, ops)
        return number, share / self.expert_scale[number]

    patch.setattr(experts.Router, "forward", forward)


BREAKS: list[Callable[[pytest.MonkeyPatch], None]] = [
    encoder_scalars_for_both, denoiser_scalars_for_both, canvas_sees_w_tokens,
    encoder_window_one_wider, band_for_the_rectangle, values_not_normed, values_after_the_key_norm,
    router_reads_the_expert_norm, softcap_after_the_temperature, no_softcap,
    no_self_conditioning_at_step_one, no_image_overlay, overlay_within_the_window,
    whole_head_turns, partial_head_as_its_own_rope, experts_without_their_scale,
]  # fmt: skip


def _script() -> Script:
    dice = Dice(TOY, seed=90)
    image = dice.image(10, 16)
    return [
        Encode(dice.with_images(image), (image,)),
        Denoise(dice.canvas()),
        Encode(dice.ids(30)),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
    ]


@pytest.mark.parametrize("wrong", BREAKS, ids=lambda wrong: wrong.__name__)
def test_a_break_is_seen(
    pairs,
    wrong: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    record_property,
) -> None:
    pair, script = pairs(TOY), _script()
    truth = play_hf(pair.sdpa, script)
    allowance = max(1e-4, 2 * furthest(truth, play_hf(pair.eager, script)))
    assert furthest(play_ours(pair.ours, script), truth) <= allowance
    wrong(monkeypatch)
    broken = furthest(play_ours(pair.ours, script), truth)
    record_property("break", (wrong.__name__, broken, allowance))
    assert broken > 10 * allowance
