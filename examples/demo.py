"""What `make demo` shows: a prompt is read, canvases are drafted and refined, an answer comes back.

There is no trained model in this version yet, so a small random one is made on the spot, saved as a
Hugging Face folder, and opened again. Its text means nothing; everything it passes through is real.

    python examples/demo.py [FOLDER]        FOLDER keeps the model, for other commands to open
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Threads that spin while they wait are slow on a busy machine; to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import diffusiongemma as dg
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma

MARKS = ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")
TEMPLATE = """{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}
{{ m.content }}<turn|>
{% endfor %}<|turn>model
"""
PROMPTS = ("Why is the sky blue?", "Sort these numbers: 7 3 9 1")


def words(folder: Path) -> int:
    """Write a byte tokenizer and a chat template; returns the size of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({**{m: n for n, m in enumerate(MARKS)}, **{
        letter: len(MARKS) + n for n, letter in enumerate(alphabet)}}, []))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer.get_vocab_size()


def make(scratch: Path, folder: Path) -> Path:
    """A random network of the real architecture: experts, both kinds of layers."""
    source = scratch / "words"
    source.mkdir()
    sliding = LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2)
    full = LayerConfig(sliding=False, head_dim=64, num_key_value_heads=1)
    config = ModelConfig(
        vocab_size=words(source), hidden_size=128, intermediate_size=256,
        layers=(sliding, sliding, full), num_attention_heads=4, sliding_window=32, num_experts=8,
        top_k_experts=2, moe_intermediate_size=64, max_position_embeddings=512, canvas_length=48,
        dtype="float32",
    )  # fmt: skip
    model = initialise(DiffusionGemma(config), seed=1)
    model.embedding.weight.data.mul_(2.5)  # so that it has opinions
    eos = {"generation_config.json": {"eos_token_id": [1, 4]}}
    return save_model(model, folder, extra=eos, copy=tuple(source.iterdir()), overwrite=True)


def show(gemma: dg.Gemma, event: dg.Refined, colour: bool) -> str:
    """The most likely canvas, unsure positions dimmed."""
    assert gemma.chat is not None
    shown = []
    for token, entropy in zip(event.best, event.entropy, strict=True):
        letter = gemma.chat.tokenizer.decode([token]) or "·"
        letter = letter if letter.isprintable() and letter != "\ufffd" else "·"
        shown.append(f"\033[2m{letter}\033[0m" if colour and entropy > 1.0 else letter)
    return "".join(shown)


def main() -> None:
    """Make, save, open, ask."""
    colour = sys.stdout.isatty()
    kept = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as scratch:
        print("No trained model ships yet: this one is random, made here, and writes nonsense.")
        started = time.perf_counter()
        folder = make(Path(scratch), kept or Path(scratch) / "model")
        gemma = dg.load(folder)
        count = sum(p.numel() for p in gemma.model.parameters())
        seconds = time.perf_counter() - started
        print(f"{count:,} parameters saved and opened in {seconds:.1f} s; {gemma.device.reason}")
        print("Each line is the likeliest canvas of a step; kept: samples that stay; nats: doubt.")
        for prompt in PROMPTS:
            print(f"\n> {prompt}")
            stream = gemma.stream(prompt, seed=7, max_new_tokens=48, max_denoising_steps=8)
            for event in stream:
                if isinstance(event, dg.Refined):
                    unsure = sum(event.entropy) / len(event.entropy)
                    kept = sum(event.accepted)
                    print(f"  step {event.step}  {show(gemma, event, colour)}  "
                          f"kept {kept:2}  {unsure:.2f} nats")  # fmt: skip
                elif isinstance(event, dg.Finished):
                    stats = event.reply.stats
                    print(f"  {stats.new_tokens} tokens, {stats.steps_per_canvas:.0f} steps, "
                          f"{stats.tokens_per_forward:.1f} tokens per forward, "
                          f"{stats.tokens_per_second:.0f} tokens/s, seed {stats.seed}")  # fmt: skip


if __name__ == "__main__":
    main()
