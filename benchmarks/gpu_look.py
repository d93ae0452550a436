"""A short look at the step on a GPU: what raises, raises here; then where its time goes.

    PYTHONPATH=src python benchmarks/gpu_look.py smoke [--size toy] [--out FOLDER]
    PYTHONPATH=src python benchmarks/gpu_look.py time

`smoke`: two layers of the true shapes, captured against plain, in both formats, a commit among
them. `time`: products of torch's library, tiles of attention and experts side by side, and a step
of either format by kernel. Every stage is on its own: one that fails costs itself. Lines go to the
screen and to FOLDER/look.txt at once, a failure's traceback to the file alone.
"""

import argparse
import dataclasses
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from diffusiongemma.cli.whole import network, parts
from diffusiongemma.cli.whole.clock import Clock
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.kernels.quantised import E4M3
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.apply import quantise

SHOWN = 30  # kernels of a profile, dearest first
_PRODUCTS = (
    (8192, 2816), (9216, 2816), (2816, 4096), (2816, 8192), (4224, 2816), (2816, 2112),
)  # fmt: skip


class Look:
    """One device, one size, one file of lines."""

    def __init__(self, size: str, folder: Path) -> None:
        self.config = network.SIZES[size]
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda:0" if self.cuda else "cpu")
        self.clock, self.begun = Clock(self.device), time.perf_counter()
        self.context = 1024 if self.cuda else 100
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "look.txt").open("a", encoding="utf-8")
        name = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.say(f"torch {torch.__version__} on {name}, {size}")

    def say(self, line: str) -> None:
        """A line that is kept at once."""
        line = f"[{time.perf_counter() - self.begun:5.1f}] {line}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()

    def stage(self, name: str, work: Callable[[], Any], *, gpu: bool = False) -> Any:
        """Run it; say what it raised."""
        if gpu and not self.cuda:
            self.say(f"== {name}: needs a GPU")
            return None
        self.say(f"== {name}")
        try:
            return work()
        except Exception as error:
            self.say(f"FAILED {name}: {type(error).__name__}: {str(error)[:400]}")
            self.file.write(traceback.format_exc()[-8000:] + "\n")
            self.file.flush()
            return None

    def made(self, layers: int | None = None, *, fp8: bool = False) -> DiffusionGemma:
        """A network with random weights."""
        config = self.config
        if layers is not None:
            config = dataclasses.replace(config, layers=config.layers[-layers:])
        model = network.made(config, self.device, torch.bfloat16)
        return quantise(model) if fp8 else model

    def smoke(self, *, fp8: bool) -> None:
        """Captured against plain: steps, a commit, a step."""
        model, width, seen = self.made(2, fp8=fp8), self.config.canvas_length, []
        for plain in (False, True):
            steps = parts.opened(model, 1, self.context, 4 * width, 6)
            steps.plain, walk = plain, []
            for number in range(5):
                steps.advance([0]) if number == 3 else steps.step()
                walk.append([one.clone() for one in _shown(steps)])
            seen.append(walk)
            means = [round(float(entropy.mean()), 4) for *_, entropy in walk]
            self.say(f"   {'captured' if steps.captured else 'plain'}: entropy {means}")
        same = [all(map(torch.equal, *pair)) for pair in zip(*seen, strict=True)]
        self.say(f"   captured equals plain, step by step: {same}")

    def step(self, model: DiffusionGemma, name: str) -> None:
        """A step, by kernels."""
        steps = parts.opened(model, 1, self.context, 4 * self.config.canvas_length, 16)
        steps.step()
        whole = self.clock.seconds(lambda: parts._again(steps))
        self.say(f"{name}: a step {whole * 1e3:.3f} ms")
        if not self.cuda:
            return
        self._profile(f"{name} step", lambda: _first(steps), whole)
        begun = time.perf_counter()
        for _ in range(8):
            _first(steps)
        self.say(f"{name}: with the host's look {(time.perf_counter() - begun) / 8 * 1e3:.3f} ms")
        steps.advance([0])
        held, kept = torch.cuda.memory_allocated() / 2**30, torch.cuda.memory_reserved() / 2**30
        self.say(f"{name}: allocated {held:.1f} GiB, reserved {kept:.1f}")

    def _profile(self, name: str, work: Callable[[], Any], whole: float) -> None:
        with profile(activities=[ProfilerActivity.CUDA]) as told:
            for _ in range(3):
                work()
            torch.cuda.synchronize()
        rows = [(e.self_device_time_total / 3, e.count / 3, e.key) for e in told.key_averages()]
        rows = sorted((row for row in rows if row[0] > 0), reverse=True)
        spent, launches = sum(row[0] for row in rows), sum(row[1] for row in rows)
        self.say(
            f"{name}: {launches:.0f} launches, kernels {spent / 1e3:.3f} of {whole * 1e3:.3f} ms"
        )
        for us, count, key in rows[:SHOWN]:
            self.say(f"   {us:9.1f} us {count:6.1f} x {us / count:8.2f}  {key[:100]}")

    def products(self) -> None:
        """torch's products at the step's shapes; weights rotate so that no cache holds them."""
        for n, k in _PRODUCTS:
            x = torch.randn(256, k, device=self.device).bfloat16()
            wide = [torch.randn(n, k, device=self.device).bfloat16() for _ in range(6)]
            took = self._each(wide, lambda w, x=x: F.linear(x, w))
            line = f"   256 x {n} x {k}: bfloat16 {took:.1f} us"
            q, row = x.to(E4M3), torch.ones(256, 1, device=self.device)
            column = torch.ones(1, n, device=self.device)
            small = [one.to(E4M3) for one in wide]
            for quick in (False, True):
                took = self._each(small, _scaled(q, row, column, quick))
                line += f", e4m3 {'in fewer bits' if quick else 'in float32'} {took:.1f}"
            self.say(line)

    def _each(self, weights: Sequence[Tensor], work: Callable[[Tensor], Any]) -> float:
        took = self.clock.seconds(lambda: [work(one) for one in weights], 10)
        return took * 1e6 / len(weights)

    def attention(self) -> None:
        """Tiles side by side, microseconds a layer."""
        from diffusiongemma.kernels.triton import attention as room

        tile = room.Tile
        for name, held, layer, count, others in (
            ("sliding", "NARROW", network._SLIDING, 25, [tile(128, 64, 1, 8, 2),
             tile(128, 64, 1, 8, 3), tile(64, 64, 1, 4, 3), tile(64, 64, 1, 4, 2)]),
            ("full", "WIDE", network._FULL, 5, [tile(128, 16, 2, 8, 3), tile(64, 32, 2, 4, 2),
             tile(64, 64, 2, 4, 2)]),
        ):  # fmt: skip
            q = torch.randn(1, 256, 16, layer.head_dim, device=self.device).bfloat16()
            shape = (1, layer.num_key_value_heads, 2048, layer.head_dim)
            keys = [torch.randn(shape, device=self.device).bfloat16() for _ in range(count)]
            first, end = (torch.tensor([n], device=self.device) for n in (0, 1280))
            usual = getattr(room, held)
            for one in (usual, *others):
                setattr(room, held, one)
                self._tile(
                    f"{name} {tuple(one)}",
                    lambda given=(q, keys, first, end): _attend(room, *given),
                    count,
                )
            setattr(room, held, usual)

    def _tile(self, name: str, work: Callable[[], Any], count: int) -> None:
        try:
            took = self.clock.seconds(work, 10)
            self.say(f"   {name}: {took * 1e6 / count:.1f} us a layer")
        except Exception as error:
            self.say(f"   {name}: {type(error).__name__}: {str(error)[:200]}")

    def experts(self, model: DiffusionGemma, *, fp8: bool) -> None:
        """The experts of all layers with other recipes."""
        from diffusiongemma.kernels.triton import experts, experts_fp8

        room, recipe, layers = experts_fp8 if fp8 else experts, experts.Recipe, len(model.blocks)
        x = torch.randn(256, self.config.hidden_size, device=self.device).bfloat16()
        routes, deep = _routes(model), 128 if fp8 else 64
        usual = (room.UP[32], room.DOWN[32], room.UP_ROWS, room.DOWN_ROWS)
        up, down, wide, tall = usual
        cases = [
            usual, (recipe(deep, 4, 3), down, wide, tall), (recipe(deep, 4, 4), down, wide, tall),
            (up, recipe(64, 4, 4), wide, tall),
            *[(recipe(deep, 8, stages), down, 128, tall) for stages in (2, 3, 4, 5)],
            (recipe(deep, 4, 3), down, 128, tall),
            *[(up, recipe(down.depth, 8, stages), wide, 256) for stages in (2, 3)],
            *[(up, recipe(down.depth, 8, stages), wide, tall) for stages in (3, 4)],
        ]  # fmt: skip
        for one, two, many, more in cases:
            room.UP[32], room.DOWN[32], room.UP_ROWS, room.DOWN_ROWS = one, two, many, more
            name = (
                f"up {many} rows {one.depth} x {one.stages} of {one.warps} warps, "
                f"down {more} rows {two.depth} x {two.stages} of {two.warps}"
            )
            self._tile(name, lambda: parts._experts(model, x, routes), layers)
        room.UP[32], room.DOWN[32], room.UP_ROWS, room.DOWN_ROWS = usual
        whole = self.clock.seconds(lambda: parts._experts(model, x, routes))
        self._profile("experts", lambda: parts._experts(model, x, routes), whole)
        tokens = room.tokens_of_a_tile
        for block in (16, 64):
            room.tokens_of_a_tile = lambda a, b, n=block: n
            self._tile(f"{block} tokens a tile", lambda: parts._experts(model, x, routes), layers)
        room.tokens_of_a_tile = tokens


def _first(steps: Steps) -> None:
    steps.drafts.step_B.zero_()
    steps.step()


def _shown(steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
    return steps.drafts.best_BL, steps.drafts.canvas_BL, steps.drafts.entropy_BL


def _scaled(q: Tensor, row: Tensor, column: Tensor, quick: bool) -> Callable[[Tensor], Any]:
    product = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    given = {"scale_a": row, "scale_b": column, "out_dtype": torch.bfloat16}
    return lambda w: product(q, w.t(), **given, use_fast_accum=quick)


def _attend(room: Any, q: Tensor, keys: Sequence[Tensor], first: Tensor, end: Tensor) -> None:
    for one in keys:
        room.attend_canvas(q, one, one, first, end)


def _routes(model: DiffusionGemma) -> list[tuple[Tensor, Tensor]]:
    config, dice = model.config, torch.Generator(device=model.device).manual_seed(3)
    made = []
    for _ in model.blocks:
        shape = (256, config.num_experts)
        score = torch.rand(shape, generator=dice, device=model.device)
        share, expert = score.topk(config.top_k_experts, dim=-1)
        made.append((expert, share / share.sum(-1, keepdim=True)))
    return made


@torch.no_grad()
def main() -> None:
    """Look."""
    parser = argparse.ArgumentParser(description="A short look at the step on a GPU.")
    parser.add_argument("what", choices=("smoke", "time"))
    parser.add_argument("--size", choices=tuple(network.SIZES), default="26b")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="FOLDER")
    given = parser.parse_args()
    look = Look(given.size, given.out)
    if given.what == "smoke":
        look.stage("two layers, bfloat16", lambda: look.smoke(fp8=False))
        look.stage("two layers, FP8", lambda: look.smoke(fp8=True))
        return
    look.stage("products", look.products, gpu=True)
    look.stage("attention", look.attention, gpu=True)
    model = look.stage("weights", look.made)
    look.stage("bfloat16", lambda: look.step(model, "bfloat16"))
    look.stage("experts, bfloat16", lambda: look.experts(model, fp8=False), gpu=True)
    gc.collect()
    look.stage("quantise", lambda: quantise(model))
    look.clock.release()
    look.stage("FP8", lambda: look.step(model, "FP8"))
    look.stage("experts, FP8", lambda: look.experts(model, fp8=True), gpu=True)
    look.say("done")


if __name__ == "__main__":
    main()
