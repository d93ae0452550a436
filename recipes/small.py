"""The small model that is to ship: this architecture, trained on tasks that the project makes.

    python recipes/small.py runs/small [--set steps=2000 batch=32]

Makes words and network, trains (from the last checkpoint in the folder if there is one), and writes
the averaged weights as a Hugging Face folder `runs/small/model`.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.dialog import tokenizer as words
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.evals.task import Problem, problems
from diffusiongemma.evals.tasks import TASKS
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example, Source
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
{{ m.content | trim }}<turn|>
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
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
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
        dtype="float32",
    )


# Shares of the short tasks; carries are learned last, so sums are seen most.
SHORT = ("addition",) * 4 + ("subtraction",) * 4 + ("sorting",) * 3 + ("sudoku4x4",) * 3
SHORT += ("reversing",) * 2
RECORDS = ("extraction", "repair")


def source(chat: Chat, batch: int) -> Source:
    """Examples by number, in batches of like length, to pad little.

    Of eight batches one is of second turns, which have a conversation before them, and two are of
    records, which take two canvases.
    """
    turn = chat.tokenizer.id("<turn|>")
    assert turn is not None

    def problem(names: tuple[str, ...], number: int) -> Problem:
        name = random.Random(number).choice(names)
        return next(problems(TASKS[name], number, held=False))

    def example(number: int) -> Example:
        kind = number // batch % 8
        asked = problem(RECORDS if kind in (3, 6) else SHORT, number)
        said = [{"role": "user", "content": asked.prompt}]
        if kind == 7:
            before = problem(SHORT + RECORDS, -number)
            first = {"role": "user", "content": before.prompt}
            said = [first, {"role": "assistant", "content": before.answer}, *said]
        return Example(chat.render(said).ids, [*chat.tokenizer.encode(asked.answer), turn])

    return example


def show(line: dict[str, Any]) -> None:
    """A line of the log, for people."""
    print(
        f"step {line['step']:6}  denoiser {line['denoiser']:.3f}  encoder {line['encoder']:.3f}  "
        f"norm {line['norm']:.2f}  {line['tokens_per_second']} tokens/s  "
        f"least expert {min(line['least_expert']):.3f}  {line['left_minutes']} min left",
        flush=True,
    )


def main() -> None:
    """Make, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    changes = {name: json.loads(value) for name, value in (s.split("=", 1) for s in given.set)}
    config = TrainConfig(**({"steps": 10_000, "batch": 16, "lr": 3e-3} | changes))
    write_words(given.folder / "words")
    tokenizer = words.Tokenizer.from_folder(given.folder / "words")
    assert tokenizer is not None
    ids = SpecialIds(eos_token_id=(1, 5))
    chat = Chat.from_folder(given.folder / "words", tokenizer, ids)
    model = initialise(DiffusionGemma(architecture(tokenizer.size)), config.seed)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters; {config}", file=sys.stderr)
    feed = source(chat, config.batch)
    average = train(model, feed, config, given.folder, eos=1, pad=0, report=show)
    average.swap(model)
    generation = SamplerConfig().to_generation_config() | {"eos_token_id": [1, 5]}
    extra = {"generation_config.json": generation}
    files = tuple((given.folder / "words").iterdir())
    save_model(model, given.folder / "model", extra=extra, copy=files, overwrite=True)


if __name__ == "__main__":
    main()
