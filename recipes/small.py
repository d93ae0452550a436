"""The small model that is to ship: this architecture, trained on tasks that the project makes.

    python recipes/small.py runs/first [--set steps=2000 batch=32]
    python recipes/small.py runs/second --part second --start runs/first/model --set steps=15500

Makes words and network, trains (from the last checkpoint in the folder if there is one), and writes
the averaged weights as a Hugging Face folder `runs/first/model`. The parts after the first go on
from such a folder with new problems, a new schedule, and more of what is hard.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from diffusiongemma.checkpoint.folder import keep
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.core.device import choose
from diffusiongemma.dialog import tokenizer as words
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.open import load
from diffusiongemma.evals.task import Problem, Task, problems
from diffusiongemma.evals.tasks import TASKS
from diffusiongemma.evals.tasks.arithmetic import Addition, Subtraction
from diffusiongemma.evals.tasks.sequences import Sorting
from diffusiongemma.evals.tasks.sudoku import Sudoku
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example, Source
from diffusiongemma.train.live import Live, samples
from diffusiongemma.train.loop import train

# Gemma's marks under their own names, and the words of a turn's head as one token each.
MARKS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|think|>", "<|channel>",
    "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
    "<tool_response|>", '<|"|>', "<|image>", "<|image|>", "<image|>",
)  # fmt: skip
HEADS = ("system", "user", "model", "thought")
TEMPLATE = """\
{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ (m.content if m.content is string else m.content | map(attribute='text') | join) | trim }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def write_words(folder: Path) -> None:
    """A tokenizer of single bytes, so that spelling and digits are in sight, and a template."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*MARKS, *HEADS, *alphabet]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.add_tokens([AddedToken(head, single_word=True, special=False) for head in HEADS])
    tokenizer.save(str(folder / "tokenizer.json"))
    # Without its class's name, transformers puts Gemma's own pre-tokenizer in place of this one.
    names = {"tokenizer_class": "PreTrainedTokenizerFast"}
    # AutoProcessor gives the tokenizer, and not Gemma's processor of pictures and sound.
    names |= {"processor_class": "PreTrainedTokenizerFast"}
    names |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def architecture(vocabulary: int) -> ModelConfig:
    """Two million parameters; both kinds of layers, eight experts."""
    sliding = LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2)
    full = LayerConfig(sliding=False, head_dim=64, num_key_value_heads=1)
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=128,
        layers=(sliding, sliding, full, sliding, sliding, full),
        num_attention_heads=4,
        sliding_window=64,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=64,
        max_position_embeddings=1024,
        canvas_length=32,
        image_token_id=MARKS.index("<|image|>"),  # it sees nothing, but transformers asks for them
        boi_token_id=MARKS.index("<|image>"),
        eoi_token_id=MARKS.index("<image|>"),
        dtype="float32",
    )


@dataclass(frozen=True)
class Mix:
    """What a part of the training is made of.

    Attributes:
        shares: of the short tasks.
        harder: tasks that stand, half of the time, in place of those that are evaluated.
        records: which of every sixteen batches are of records, which take two canvases.
        numbers: before an example's number, so that a part has problems of its own.
    """

    shares: dict[str, int]
    harder: dict[str, Task] = field(default_factory=dict[str, Task])
    records: tuple[int, ...] = (3, 11)
    numbers: str = ""


# What is learned early makes room, from a step on, for what takes long.
EARLY = Mix(
    {"addition": 4, "subtraction": 4, "sorting": 3, "sudoku4x4": 3, "reversing": 2},
    records=(3, 6, 11, 14),
)
LATE = Mix({"addition": 6, "subtraction": 6, "sorting": 4, "sudoku4x4": 3, "reversing": 1})
TURN = 6500  # the step
# Sums of long numbers, and sorting with many numbers of one digit, where the first part failed.
SECOND = Mix(
    {"addition": 6, "subtraction": 8, "sorting": 4, "sudoku4x4": 3, "reversing": 1},
    {
        "addition": Addition((2, 4)),
        "subtraction": Subtraction((2, 4)),
        "sorting": Sorting(0.4),
        "sudoku4x4": Sudoku(size=4, clues=(5, 8)),
    },
    numbers="again ",
)
# Sums of two long numbers, and sorting of many, where the second failed.
THIRD = Mix(
    {"addition": 8, "subtraction": 10, "sorting": 6, "sudoku4x4": 4, "reversing": 1},
    {
        "addition": Addition((3, 4)),
        "subtraction": Subtraction((3, 4)),
        "sorting": Sorting(0.2, (6, 8)),
        "sudoku4x4": Sudoku(size=4, clues=(5, 8)),
    },
    records=(3,),
    numbers="third ",
)
PARTS: dict[str, Callable[[int], Mix]] = {"first": lambda step: EARLY if step < TURN else LATE}
PARTS |= {"second": lambda step: SECOND, "third": lambda step: THIRD}
RECORDS = {"extraction": 1, "repair": 1}
SAMPLER = SamplerConfig(entropy_bound=0.001)  # by the table of recipes/bound.py


def source(chat: Chat, batch: int, part: Callable[[int], Mix]) -> Source:
    """Examples by number, in batches of like length, to pad little; `part` gives a step's mix.

    Of eight batches one is of second turns, which have a conversation before them.
    """
    turn = chat.tokenizer.id("<turn|>")
    assert turn is not None

    def problem(mix: Mix, shares: dict[str, int], place: int | str) -> Problem:
        dice = random.Random(place)
        (name,) = dice.choices(list(shares), list(shares.values()))
        tasks = TASKS | mix.harder if mix.harder and dice.random() < 0.5 else TASKS
        return next(
            problems(tasks[name], f"{mix.numbers}{place}" if mix.numbers else place, held=False)
        )

    def example(number: int) -> Example:
        step = number // batch
        mix = part(step)
        asked = problem(mix, RECORDS if step % 16 in mix.records else mix.shares, number)
        said = [{"role": "user", "content": asked.prompt}]
        if step % 8 == 7:
            before = problem(mix, mix.shares | RECORDS, f"before {number}")
            first = {"role": "user", "content": before.prompt}
            said = [first, {"role": "assistant", "content": before.answer}, *said]
        return Example(chat.render(said).ids, [*chat.tokenizer.encode(asked.answer), turn])

    return example


def main() -> None:
    """Make, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--part", choices=PARTS, default="first")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="weights to go on from")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    changes = {name: json.loads(value) for name, value in (s.split("=", 1) for s in given.set)}
    config = TrainConfig(**({"steps": 12_500, "batch": 16, "lr": 3e-3} | changes))
    write_words(given.folder / "words")
    tokenizer = words.Tokenizer.from_folder(given.folder / "words")
    assert tokenizer is not None
    ids = SpecialIds(eos_token_id=(1, 5))
    chat = Chat.from_folder(given.folder / "words", tokenizer, ids)
    if given.start is None:
        model = initialise(DiffusionGemma(architecture(tokenizer.size)), config.seed)
    else:
        model = load(str(given.start), dtype="float32").model
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters; {config}", file=sys.stderr)
    feed = source(chat, config.batch, PARTS[given.part])
    gemma = Gemma(
        model,
        chat=chat,
        sampler=SAMPLER,
        eos=chat.marks.ends,
        banned=[MARKS.index(mark) for mark in MARKS if "image" in mark],
        device=choose("cpu", "float32", "float32"),
        folder=given.folder,
    )
    asked = [(task, next(problems(task, 0, held=True))) for task in TASKS.values()]
    shown = [(problem.prompt, partial(task.right, problem)) for task, problem in asked]
    with Live(config.steps) as live:
        ask = partial(samples, gemma, shown, live.say)
        average = train(*(model, feed, config, given.folder), eos=1, pad=0, report=live, sample=ask)
    average.swap(model)
    marks = {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0}
    generation = SAMPLER.to_generation_config() | marks
    extra = {"generation_config.json": generation}
    files = keep(given.folder / "words")
    save_model(model, given.folder / "model", extra=extra, files=files, overwrite=True)


if __name__ == "__main__":
    main()
