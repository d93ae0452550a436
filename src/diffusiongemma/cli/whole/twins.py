"""Each Triton kernel against its reference, at the shapes of a size, on random data.

Where numbers are rounded, both are held against float32: a kernel may be as far from it as its
reference is, and a fifth more. Where they are not, kernel and reference must agree.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.cli.whole.network import SIZES
from diffusiongemma.kernels import experts as experting
from diffusiongemma.kernels import readout as reading
from diffusiongemma.kernels import slots as attending
from diffusiongemma.kernels.experts_fp8 import reference_fp8
from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.norm_rope import frequencies, norm_rope, rms_norm, rms_norms, rotation
from diffusiongemma.kernels.ops import choose, no_triton
from diffusiongemma.kernels.philox import Purpose, seed_words, uniforms
from diffusiongemma.kernels.quantised import fp8_linears, quantise_rows, quantise_weight
from diffusiongemma.kernels.refine import within_bound
from diffusiongemma.model.config import LayerConfig, ModelConfig

_MORE = 1.2  # times the reference's error that a kernel may have
_CONTEXT = 1300  # tokens, on more than one window of the released model
Check = Callable[[], dict[str, Any]]


def checks(device: torch.device, size: str) -> Iterator[tuple[str, Check]]:
    """Every kernel by name; none where Triton does not run."""
    why = no_triton(device)
    if why is not None:
        yield "kernels", lambda: {"not run": why}
        return
    yield from all_of(Data(SIZES[size], device))


def all_of(data: "Data") -> Iterator[tuple[str, Check]]:
    """Every kernel by name."""
    config = data.config
    yield "kernel: experts", lambda: _experts(data)
    yield "kernel: experts beside the dense branch", lambda: _branches(data)
    yield "kernel: experts in e4m3", lambda: _experts_fp8(data)
    yield "product in e4m3", lambda: _product_fp8(data)
    yield "kernel: router", lambda: _router(data)
    for layer in dict.fromkeys(config.layers):
        kind = "sliding" if layer.sliding else "full"
        yield (
            f"kernel: attention of a canvas, {kind}",
            lambda one=layer: _attention(data, one, False),
        )
        yield f"kernel: attention of a text, {kind}", lambda one=layer: _attention(data, one, True)
        yield f"kernel: norm and rotation, {kind}", lambda one=layer: _norm_rope(data, one)
    yield "kernel: between the branches", lambda: _residual(data)
    yield "kernel: readout", lambda: _readout(data)
    yield "kernel: draws and refinement", lambda: _refine(data)


class Data:
    """Random tensors on a device, the same at every run."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.dice = torch.Generator(device=device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers in bfloat16."""
        drawn = torch.randn(*shape, generator=self.dice, device=self.device)
        return (drawn * scale).bfloat16()

    def tokens(self, width: int | None = None) -> Tensor:
        """A canvas of them."""
        return self.normal(self.config.canvas_length, width or self.config.hidden_size)

    def routes(self) -> tuple[Tensor, Tensor]:
        """Experts and weights of each token of a canvas."""
        config = self.config
        scores = torch.rand(
            config.canvas_length, config.num_experts, generator=self.dice, device=self.device
        )
        share, expert = scores.topk(config.top_k_experts, dim=-1)
        return expert, share / share.sum(-1, keepdim=True)

    def experts(self) -> tuple[Tensor, Tensor]:
        """The weights of a layer's experts."""
        count, hidden = self.config.num_experts, self.config.moe_intermediate_size
        width = self.config.hidden_size
        gate_up = self.normal(count, 2 * hidden, width, scale=width**-0.5)
        return gate_up, self.normal(count, width, hidden, scale=hidden**-0.5)


def held(ours: Tensor, reference: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors beside float32.

    Raises:
        AssertionError: ours is much larger, or nothing was computed.
    """
    off, usual = (float((one.float() - truth).abs().mean()) for one in (ours, reference))
    size = float(truth.abs().mean())
    assert size > 0 and off <= _MORE * usual + 1e-6 * size, (
        f"mean error {off:.3e}, the reference's is {usual:.3e}, of numbers of {size:.3e}"
    )
    return {"mean_error": off, "mean_error_of_reference": usual, "size": size}


def _experts(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import experts as quick

    x_SD, (expert_SG, share_SG), weights = data.tokens(), data.routes(), data.experts()
    given = (x_SD, expert_SG, share_SG, *weights)
    wide = [one.float() for one in weights]
    truth = experting.experts(x_SD.float(), expert_SG, share_SG, wide[0], wide[1])
    return held(quick.experts(*given), experting.experts(*given), truth)


def _branches(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import experts as quick

    config = data.config
    width, hidden = config.hidden_size, config.intermediate_size
    dense = [data.normal(hidden, width, scale=width**-0.5) for _ in range(2)]
    dense.append(data.normal(width, hidden, scale=hidden**-0.5))
    weights, (expert_SG, share_SG) = data.experts(), data.routes()
    if not quick.fits(dense[0], weights[1]):
        return {"not run": "the widths of this size do not fit"}
    x_SD, y_SD = data.tokens(), data.tokens()
    gate, up, down = dense
    ours = quick.branches(x_SD, y_SD, expert_SG, share_SG, gate, up, down, weights[0], weights[1])

    def plain(cast: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        gate, up, down = (cast(one) for one in dense)
        inner = gated(cast(x_SD) @ gate.T, cast(x_SD) @ up.T) @ down.T
        wide = [cast(one) for one in weights]
        return inner, experting.experts(cast(y_SD), expert_SG, share_SG, wide[0], wide[1])

    usual, truth = plain(lambda one: one), plain(lambda one: one.float())
    names = ("dense", "routed")
    parts = zip(names, ours, usual, truth, strict=True)
    return {name: held(one, two, three) for name, one, two, three in parts}


def _experts_fp8(data: Data) -> dict[str, Any]:
    if not _eight(data.device):
        return {"not run": "products in e4m3 need a GPU of capability 8.9"}
    from diffusiongemma.kernels.triton.experts_fp8 import experts_fp8

    gate_up, down = (quantise_weight(one) for one in data.experts())
    x_SD, (expert_SG, share_SG) = data.tokens(), data.routes()
    given = (x_SD, expert_SG, share_SG, *gate_up, *down)
    ours, reference = experts_fp8(*given), reference_fp8(*given)
    return _alike(ours, reference)


def _product_fp8(data: Data) -> dict[str, Any]:
    config, width = data.config, data.config.hidden_size
    weight_FD, scale_F = quantise_weight(data.normal(config.intermediate_size, width))
    x_SD, scale_F = data.tokens(), scale_F.float()  # as a quantised layer holds it
    table = choose(data.device, x_SD.dtype, fp8=True, compiled=False)
    ours = fp8_linears(x_SD, [(weight_FD, scale_F)], table.fp8_product)[0]
    q_SD, scale_S = quantise_rows(x_SD)
    truth = (q_SD.float() @ weight_FD.float().T) * scale_S[:, None] * scale_F
    return _alike(ours, truth)


def _alike(ours: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean difference, as a share of the numbers; sums in e4m3 products keep fewer bits."""
    off = float((ours.float() - reference.float()).abs().mean() / reference.float().abs().mean())
    assert off < 0.01, f"they differ by {off:.4f} of their size"
    return {"mean_difference": off}


def _eight(device: torch.device) -> bool:
    if device.type == "cpu":  # interpreted
        return True
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _router(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import router

    config, x_SD = data.config, data.tokens()
    weight_ED = data.normal(config.num_experts, config.hidden_size, scale=config.hidden_size**-0.5)
    scale_E = 1 + data.normal(config.num_experts, scale=0.1)
    expert_SG, share_SG = router.route(x_SD, weight_ED, scale_E, config.top_k_experts)
    scores_SE = (x_SD @ weight_ED.T).softmax(-1, dtype=torch.float32)
    share, expert = scores_SE.topk(config.top_k_experts, dim=-1)
    share = share / share.sum(-1, keepdim=True) * scale_E[expert]
    same = float((expert_SG.sort(-1).values == expert.sort(-1).values).float().mean())
    assert same > 0.99, f"only {same:.4f} of the routes agree"
    off = (share_SG.sort(-1).values - share.float().sort(-1).values).abs().median()
    assert float(off) < 1e-2, f"weights differ by {float(off)}"
    return {"routes_equal": same, "median_weight_off": float(off)}


def _attention(data: Data, layer: LayerConfig, causal: bool) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import attention as quick

    config, (keys, width) = data.config, (layer.num_key_value_heads, layer.head_dim)
    tokens, rows, context = config.canvas_length, 2, min(_CONTEXT, 4 * config.sliding_window)
    capacity = context + 3 * tokens
    scale = width**-0.25
    q_BTNH = data.normal(rows, tokens, config.num_attention_heads, width, scale=scale)
    k_BKCH, v_BKCH = (data.normal(rows, keys, capacity, width, scale=scale) for _ in "kv")
    end_B = torch.tensor([context + tokens, tokens + 7], device=data.device)
    window = config.sliding_window if layer.sliding else None
    first_B = (end_B - tokens - (window or capacity) + 1).clamp(min=0)
    if causal:
        given = (torch.zeros_like(first_B), end_B, window)
        ours = quick.attend_causal(q_BTNH, k_BKCH, v_BKCH, *given)
        index = torch.arange(capacity, device=data.device)
        own = end_B[:, None] - tokens + torch.arange(tokens, device=data.device)
        mask = index <= own[..., None]
        mask &= index > own[..., None] - (window or capacity)
    else:
        ours = quick.attend_canvas(q_BTNH, k_BKCH, v_BKCH, first_B, end_B)
        index = torch.arange(capacity, device=data.device)
        mask = ((index >= first_B[:, None]) & (index < end_B[:, None]))[:, None]
    usual = attending.masked(q_BTNH, k_BKCH, v_BKCH, mask)
    truth = attending.masked(q_BTNH.float(), k_BKCH.float(), v_BKCH.float(), mask)
    return held(ours, usual, truth)


def _norm_rope(data: Data, layer: LayerConfig) -> dict[str, Any]:
    from diffusiongemma.kernels.triton.norm_rope import norm_rope_write

    config, width, keys = data.config, layer.head_dim, layer.num_key_value_heads
    heads, tokens = config.num_attention_heads, config.canvas_length
    columns = (heads + (2 if layer.sliding else 1) * keys) * width
    qkv_SF = data.normal(tokens, columns)
    q_norm, k_norm = (1 + data.normal(width, scale=0.1) for _ in "qk")
    pace = frequencies(width, 1e4, 1.0 if layer.sliding else 0.25, data.device)
    turn = rotation(torch.arange(7, 7 + tokens, device=data.device), pace)
    k_BKCH, v_BKCH = (data.normal(1, keys, tokens + 9, width) for _ in "kv")
    at_B = torch.tensor([5], device=data.device)
    eps = config.rms_norm_eps
    ours = norm_rope_write(qkv_SF, q_norm, k_norm, eps, turn, k_BKCH, v_BKCH, at_B, heads)
    parts = qkv_SF.unflatten(-1, (-1, width)).split(
        [heads, keys, columns // width - heads - keys], 1
    )
    raw = parts[2] if layer.sliding else parts[1]
    wanted = [
        norm_rope(parts[0], q_norm, eps, turn),
        norm_rope(parts[1], k_norm, eps, turn),
        rms_norm(raw, None, eps),
    ]
    written = [one[0, :, 5 : 5 + tokens].transpose(0, 1) for one in (k_BKCH, v_BKCH)]
    return {"largest_difference": _near([ours, *written], wanted)}


def _residual(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import residual

    width, eps = data.config.hidden_size, data.config.rms_norm_eps
    attended, x, dense, routed = (data.tokens() for _ in range(4))
    after, two, three, scale = (1 + data.normal(width, scale=0.1) for _ in range(4))
    ours = residual.after_attention(attended, x, after, two, three, scale, eps)
    stream = x + rms_norm(attended, after, eps)
    reads = rms_norms(stream, (two, three), eps)
    asked = rms_norm(stream, None, eps) * scale * width**-0.5
    off = _near(ours, [stream, *reads, asked])
    number = torch.full((len(x),), 0.7, device=data.device).bfloat16()
    ours = residual.after_branches(dense, routed, x, after, two, three, number, scale, eps)
    both = rms_norm(dense, after, eps) + rms_norm(routed, two, eps)
    stream = (x + rms_norm(both, three, eps)) * number[:, None]
    return {"largest_difference": max(off, _near(ours, [stream, rms_norm(stream, scale, eps)]))}


def _near(ours: Any, wanted: Any) -> float:
    """Largest difference, which must be a rounding or two of bfloat16."""
    worst = 0.0
    for one, two in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=2**-6, atol=2**-6)
        worst = max(worst, float((one.float() - two.float()).abs().max()))
    return worst


def _readout(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import readout, soften

    config, x_SD = data.config, data.tokens()
    table_VD = data.normal(config.vocab_size, config.hidden_size, scale=config.hidden_size**-0.5)
    logits_SV = (x_SD * 4) @ table_VD.T
    heat_S = torch.full((len(x_SD),), 0.6, device=data.device)
    uniform_S = torch.rand(len(x_SD), generator=data.dice, device=data.device, dtype=torch.float64)
    cap = config.final_logit_softcapping
    scale = torch.full((), 53.0, device=data.device).bfloat16()
    seen = readout.read(logits_SV, cap, heat_S, uniform_S)
    p_SV = torch.softmax(torch.tanh(logits_SV.float() / cap) * cap / 0.6, -1)
    entropy_S = -(p_SV * p_SV.clamp(min=1e-38).log()).sum(-1)
    torch.testing.assert_close(seen.entropy_S, entropy_S, rtol=1e-3, atol=1e-4)
    best = float((seen.best_S == p_SV.argmax(-1)).float().mean())
    drawn = float((seen.token_S == reading.draw(p_SV, uniform_S)).float().mean())
    assert best > 0.99 and drawn > 0.98, f"{best} of the best, {drawn} of the drawn agree"
    ours = soften.soften(logits_SV, cap, heat_S, seen.log_total_S, None, table_VD, scale)
    truth = (p_SV @ table_VD.float()) * scale.float()
    usual = reading.expected_embedding(p_SV, table_VD, scale)
    return {"best_equal": best, "drawn_equal": drawn} | held(ours, usual, truth)


def _refine(data: Data) -> dict[str, Any]:
    from diffusiongemma.kernels.triton import refine

    config, device = data.config, data.device
    seeds = seed_words([7, 2**63 + 11], device)
    canvas_B, step_B = torch.tensor([0, 3], device=device), torch.tensor([1, 40], device=device)
    place = (seeds, canvas_B, step_B, config.canvas_length)
    uniform_BL, noise_BL = refine.draws(*place, config.vocab_size)
    assert torch.equal(uniform_BL, uniforms(*place, Purpose.DRAW)), "uniforms differ"
    noise = (uniforms(*place, Purpose.NOISE) * config.vocab_size).long()
    assert torch.equal(noise_BL, noise), "noise differs"
    entropy_BL = uniform_BL.float() ** 4
    same, repeats_B = noise_BL.clone(), torch.zeros(2, dtype=torch.int64, device=device)
    bound_B, sure_B = torch.tensor([[0.1, 0.2], [0.5, 0.5]], device=device)
    canvas, accepted, repeats, done = refine.refine(
        same, same, entropy_BL, noise_BL, same, repeats_B, bound_B, repeats_B + 1, sure_B
    )
    assert torch.equal(accepted, within_bound(entropy_BL, bound_B[:, None])), "acceptance differs"
    assert torch.equal(canvas, same) and repeats.tolist() == [1, 1] and bool(done.all())
    return {"equal": True}
