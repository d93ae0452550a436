"""The small model's second edition: right on every shape, and able to think, call and choose.

    python recipes/edition.py runs/edition --start src/diffusiongemma/small
    python recipes/edition.py runs/later --start recipes/second --from-step 50016
    python recipes/edition.py runs/quick --device cuda --minutes 3 --workers 14 --rows 52 --look 0 \
        --set batch=128 lr=0.004 warmup=300 lr_end=0.01 ema=0.998 save_every=2000 log_every=50

The first grows the shipped weights (three layers and wider branches, which change nothing at first)
and trains them on `evals.tasks.NEXT`. A later sitting goes on from the weights that the one before
has left, with new problems, as the number of a step times its batch decides what it is shown: 6,252
steps of 128 are 50,016 of 16. The last is for a GPU and an end by the clock: each step learns from
a sheet, in which problems of all kinds share rows.
"""

import argparse
import contextlib
import functools
import itertools
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.core.atomic import replacing
from diffusiongemma.core.device import Device, choose
from diffusiongemma.dialog import tokenizer as words
from diffusiongemma.dialog.caged import Renderer
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.open import load
from diffusiongemma.evals.run import Record, evaluate
from diffusiongemma.evals.task import Problem, problems
from diffusiongemma.evals.tasks import NEXT
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.ahead import Ahead
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example, Source
from diffusiongemma.train.lesson import Sheets
from diffusiongemma.train.live import Live
from diffusiongemma.train.loop import train
from diffusiongemma.train.sheet import Form, Sheet

SECOND = Path(__file__).parent / "second"  # as far as it has come
SHIPPED = Path(__file__).parent.parent / "src" / "diffusiongemma" / "small"
EOS, PAD, ENDS = 1, 0, (1, 5, 13)
IMAGES = (16, 17, 18)
SAMPLER = SamplerConfig(entropy_bound=0.001)

# What the batches of sixteen steps are made of: problems of like length, to pad little.
SHORT = {
    "addition": 4, "subtraction": 6, "sorting": 6, "reversing": 2, "sudoku4x4": 3, "choices": 5,
}  # fmt: skip
ROUND: tuple[dict[str, int], ...] = (
    *[SHORT] * 8, {"extraction": 2, "repair": 1}, {"extraction": 1, "repair": 1},
    *[{"thinking": 1}] * 2, *[{"two turns": 1}] * 2, *[{"tool call": 1}] * 2,
)  # fmt: skip
ORDER = (0, 8, 1, 10, 2, 12, 3, 14, 4, 9, 5, 11, 6, 13, 7, 15)
LENGTH = 384  # of a sheet's rows: the longest examples, those with a tool, take 362 of it
TALKS = 7  # of sixteen: the batch whose questions have another conversation before them


def architecture(like: ModelConfig) -> ModelConfig:
    """3.9 million parameters: nine layers, and branches one and a half times as wide."""
    sliding = LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2)
    full = LayerConfig(sliding=False, head_dim=64, num_key_value_heads=1)
    parts = {name: getattr(like, name) for name in like.__dataclass_fields__}
    parts |= {"layers": (sliding, sliding, full) * 3}
    return ModelConfig(**parts | {"intermediate_size": 192, "moe_intermediate_size": 96})


@torch.no_grad()
def grown(old: DiffusionGemma, seed: int) -> DiffusionGemma:
    """A larger network that computes what the old one does.

    The first three layers and the last three are the old one's six. Those between them are copies
    of the last three whose outputs are scaled by zero; new channels of branches read at random and
    write nothing.
    """
    new = initialise(DiffusionGemma(architecture(old.config)), seed)
    places = {n: n if n < 3 else n + 3 for n in range(6)}
    for number, place in [*places.items(), (3, 3), (4, 4), (5, 5)]:
        _copy(old.blocks[number], new.blocks[place])
    for number in (3, 4, 5):
        block: Any = new.blocks[number]
        block.after_attention.weight.zero_()
        block.after_branches.weight.zero_()
    for name in ("embedding", "norm", "self_conditioning"):
        _copy(getattr(old, name), getattr(new, name))
    return new


def _copy(source: Any, target: Any) -> None:
    """Weights into the beginning of larger ones; what is read by new channels goes nowhere."""
    into = dict(target.named_parameters()) | dict(target.named_buffers())
    for name, weight in (*source.named_parameters(), *source.named_buffers()):
        slot = into[name]
        if slot.shape == weight.shape:
            slot.copy_(weight)
        elif name.endswith("experts.gate_up"):  # gates, then ups
            half, wide = weight.shape[1] // 2, slot.shape[1] // 2
            slot[:, :half], slot[:, wide : wide + half] = weight[:, :half], weight[:, half:]
        else:
            if name.endswith(("down", "down.weight")):
                slot.zero_()
            slot[tuple(slice(size) for size in weight.shape)] = weight


def write_words(folder: Path) -> None:
    """The second edition's tokenizer, which is the shipped one, and its template."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as scratch:
        scratch.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(SECOND / name, scratch / name)


class Trusted:
    """A template of our own, rendered here and not in a cage: a quarter of the time."""

    def __init__(self, path: Path) -> None:
        self._renderer = Renderer(path.read_text(encoding="utf-8"))

    def render(self, variables: dict[str, Any]) -> str:
        """As `Template.render`."""
        asked = {"variables": variables, "characters": 1 << 18, "now": "2026-01-01"}
        kind, text = self._renderer.render(asked)
        if kind != "text":
            raise ValueError(f"the template fails on {variables}: {kind} {text}")
        return text


def chat_of(folder: Path) -> Chat:
    """The words of a folder that this recipe wrote."""
    tokenizer = words.Tokenizer.from_folder(folder)
    assert tokenizer is not None
    chat = Chat.from_folder(folder, tokenizer, SpecialIds(eos_token_id=ENDS))
    trusted: Any = Trusted(folder / "chat_template.jinja")
    chat.template = trusted
    return chat


@dataclass
class Sheeter:
    """The sheet of a step; goes to another process by its fields.

    Attributes:
        folder: of the words.
        batch: examples a step, of every kind among sixteen.
        first: the step that this sitting begins with.
        form: of the sheets.
    """

    folder: Path
    batch: int
    first: int
    form: Form

    def __call__(self, step: int) -> Sheet:
        """The same from whatever process."""
        number = (self.first + step) * self.batch
        feed = _mixed(self.folder)
        examples = [feed(number + n) for n in range(self.batch)]
        return self.form.lay(examples, f"{self.first + step}")


@functools.lru_cache
def _mixed(folder: Path) -> Source:
    """Every kind among sixteen examples, where `source` has one in a batch."""
    return source(chat_of(folder), 1, 0)


def source(chat: Chat, batch: int, first: int) -> Source:
    """Examples by number; `first` is the step that this sitting begins with."""
    mark = {name: chat.tokenizer.id(name) for name in _MARKS}

    def problem(shares: dict[str, int], number: int | str) -> Problem:
        dice = random.Random(f"edition {number}")
        (name,) = dice.choices(list(shares), list(shares.values()))
        return next(problems(NEXT[name], f"edition {number}", held=False))

    def example(number: int) -> Example:
        step, number = first + number // batch, first * batch + number
        place = ORDER[step % len(ORDER)]
        asked = problem(ROUND[place], number)
        said = asked.messages()
        if place == TALKS:
            before = problem(SHORT, f"before {number}")
            said = [*before.messages(), {"role": "assistant", "content": before.answer}, *said]
        dice = random.Random(f"stage {number}")
        ids = []
        if asked.tool is not None and dice.random() < 0.6:
            call = {"name": asked.tool.name, "arguments": dict(asked.tool.arguments)}
            body = "".join(f'{k}:<|"|>{v}<|"|>' for k, v in call["arguments"].items())
            text = f"<|tool_call>call:{call['name']}{{{body}}}<tool_call|>"
            ids = [*chat.tokenizer.encode(text, special=True), mark["<|tool_response>"]]
        else:
            if asked.tool is not None:
                said = [*said, *_used(asked)]
            if asked.thought is not None:
                text = f"<|channel>thought\n{asked.thought}\n<channel|>"
                ids = chat.tokenizer.encode(text, special=True)
            ids = [*ids, *chat.tokenizer.encode(asked.answer), mark["<turn|>"]]
        prompt = chat.render(said, tools=asked.tools(), think=asked.thought is not None)
        return Example(prompt.ids, ids)

    return example


_MARKS = ("<turn|>", "<|tool_response>")


def _used(asked: Problem) -> list[dict[str, Any]]:
    assert asked.tool is not None
    function = {"name": asked.tool.name, "arguments": dict(asked.tool.arguments)}
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "name": asked.tool.name, "content": asked.tool.result},
    ]


def gemma_of(model: DiffusionGemma, chat: Chat, folder: Path, place: Device) -> Gemma:
    """The network in training with its words."""
    return Gemma(
        model, chat=chat, sampler=SAMPLER, eos=frozenset(ENDS), banned=list(IMAGES),
        device=place, folder=folder,
    )  # fmt: skip


def write(model: DiffusionGemma, words_folder: Path, folder: Path) -> None:
    """A Hugging Face folder."""
    marks = {"bos_token_id": 2, "eos_token_id": list(ENDS), "pad_token_id": PAD}
    extra = {"generation_config.json": SAMPLER.to_generation_config() | marks}
    files = {file.name: file.read_bytes() for file in words_folder.iterdir()}
    save_model(model, folder, extra=extra, files=files, overwrite=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What is asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--start", type=Path, default=SHIPPED, metavar="FOLDER")
    parser.add_argument("--from-step", type=int, default=0, metavar="N", help="of the whole run")
    parser.add_argument(
        "--look", type=int, default=4, metavar="N", help="every Nth checkpoint; 0 never"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; a GPU if there is one")
    parser.add_argument("--minutes", type=float, metavar="M", help="end by the clock, not by steps")
    parser.add_argument("--rows", type=int, metavar="B", help="learn from sheets of so many rows")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="that make sheets")
    parser.add_argument(
        "--capture", action=argparse.BooleanOptionalAction, default=True,
        help="replay a sheet's step as one graph, on a GPU",
    )  # fmt: skip
    given = parser.parse_args(argv)
    if given.rows is None and (given.workers or not given.capture):
        parser.error("--workers and --no-capture are for sheets; say of how many rows with --rows")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Grow or go on, train, write."""
    given = arguments(argv)
    torch.set_num_threads(given.threads)
    place = choose(given.device, "float32", "float32")
    changes = {name: json.loads(value) for name, value in (s.split("=", 1) for s in given.set)}
    usual = {"steps": 9000, "batch": 16, "lr": 2e-3, "prompt_weight": 0.02, "save_every": 250}
    if given.minutes is not None:
        usual["steps"] = 10**6  # more than there is time for
    config = TrainConfig(**(usual | changes))
    write_words(given.folder / "words")
    with contextlib.ExitStack() as stack:
        feed = feed_of(given, config, stack)
        if place.device.type == "cuda":  # what the products lose by it is less than a step's noise
            torch.set_float32_matmul_precision("high")
        model = load(str(given.start), device="cpu", dtype="float32").model
        if len(model.blocks) == 6:
            model = grown(model, config.seed)
        model = model.to(place.device)
        count = sum(p.numel() for p in model.parameters())
        print(f"{count:,} parameters; {place.reason}; {config}", file=sys.stderr)
        run(given, config, model, feed, place)
    write(model, given.folder / "words", given.folder / "model")


def feed_of(
    given: argparse.Namespace, config: TrainConfig, stack: contextlib.ExitStack
) -> Source | Sheets:
    """What the run learns from; processes that make it start here, while the network loads."""
    folder = given.folder / "words"
    if given.rows is None:
        return source(chat_of(folder), config.batch, given.from_step)
    form = Form(
        rows=given.rows, length=LENGTH, width=config.canvas_length, eos=EOS, pad=PAD,
        prompt_weight=config.prompt_weight,
    )  # fmt: skip
    make = Sheeter(folder, config.batch, given.from_step, form)
    ahead = stack.enter_context(Ahead(make, given.workers))
    ahead.start(0)
    return Sheets(ahead, config.canvas_length, capture=given.capture)


def run(
    given: argparse.Namespace,
    config: TrainConfig,
    model: DiffusionGemma,
    feed: Source | Sheets,
    place: Device,
) -> None:
    """Train, and leave the averaged weights in the network."""
    gemma = gemma_of(model, chat_of(given.folder / "words"), given.folder, place)
    looks = itertools.count(1)
    with Live(config.steps) as live:

        def look() -> None:
            """What it can do by now, into `shapes.jsonl`; and the averaged weights."""
            write(model, given.folder / "words", given.folder / "model")
            if given.look and next(looks) % given.look == 0:
                asked = evaluate(gemma, list(NEXT), 5, tasks=NEXT, max_new_tokens=128, batch=64)
                _note(list(asked), given.folder / "shapes.jsonl", live.say)

        average = train(
            model, feed, config, given.folder, eos=EOS, pad=PAD, minutes=given.minutes,
            report=live, sample=look,
        )  # fmt: skip
    average.swap(model)  # a run that was killed before its last look ends here at once


def _note(records: list[Record], file: Path, say: Callable[[str], None]) -> None:
    right: dict[str, list[bool]] = {}
    for record in records:
        right.setdefault(f"{record.task}: {record.shape}", []).append(record.right)
    shares = {shape: sum(found) / len(found) for shape, found in right.items()}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(shares) + "\n")
    by_task: dict[str, list[float]] = {}
    for shape, share in shares.items():
        by_task.setdefault(shape.split(":")[0], []).append(share)
    told = [f"{task} {100 * sum(s) / len(s):.0f}" for task, s in by_task.items()]
    say(f"  right, % (mean of shapes): {', '.join(told)}")


if __name__ == "__main__":
    main()
