"""The recipes run as they are documented; what they write opens."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import diffusiongemma as dg
from cli_help import ENVIRONMENT, ROOT

sys.path.append(str(ROOT / "recipes"))
import edition


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "edition.py"), str(folder), *words],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_small_model_s_recipe(tmp_path: Path) -> None:
    few = ["--set", "steps=2", "batch=2", "save_every=1", "log_every=1"]
    run(tmp_path / "one", "--look", "9", *few)
    log = [
        json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in log] == [1, 2]
    assert all(abs(sum(layer) - 1) < 0.01 for layer in log[-1]["expert_share"])
    shipped, made = dg.load(), dg.load(tmp_path / "one" / "model")
    assert made.chat is not None and shipped.chat is not None
    turns = [{"role": "user", "content": "Sort: 3 1 2"}]
    assert made.chat.render(turns).ids == shipped.chat.render(turns).ids
    there = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name != ".lock")
    assert there == ["metrics.jsonl", "model", "step-00000001", "step-00000002", "words"]
    # Killed before its last look, it is written when it is run again.
    weights = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "one" / "model")
    run(tmp_path / "one", "--look", "9", *few)
    assert (tmp_path / "one" / "model" / "model.safetensors").read_bytes() == weights
    # A later sitting goes on from what was written, with other examples.
    run(tmp_path / "two", "--start", str(tmp_path / "one" / "model"), "--from-step", "2", *few)
    assert len(dg.load(tmp_path / "two" / "model").model.blocks) == len(made.model.blocks)


@torch.no_grad()
def test_growing_changes_nothing_at_first() -> None:
    old = dg.load(dtype="float32").model
    new = edition.grown(old, seed=1)
    assert len(new.blocks) > len(old.blocks)
    ids = torch.randint(19, 279, (1, 50), generator=torch.Generator().manual_seed(1))
    seen = []
    for model in (old, new):
        context = model.context()
        model.encode(model.embed(ids), context)
        seen.append(model.logits(model.denoise(ids[:, :32], None, context)))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)


def test_examples_teach_calls_thoughts_and_answers(tmp_path: Path) -> None:
    edition.write_words(tmp_path)
    tokenizer = edition.words.Tokenizer.from_folder(tmp_path)
    chat = edition.Chat.from_folder(tmp_path, tokenizer, edition.SpecialIds(eos_token_id=(1, 5)))
    feed = edition.source(chat, 4, 0)
    seen = [feed(number) for number in range(4 * 32)]
    assert [e.answer for e in seen] == [feed(number).answer for number in range(4 * 32)]
    texts = [tokenizer.decode(e.answer, special=True) for e in seen]
    assert all(text.endswith(("<turn|>", "<|tool_response>")) for text in texts)
    assert any(text.startswith("<|channel>thought\n") for text in texts)
    calls = [e for e, text in zip(seen, texts, strict=True) if text.startswith("<|tool_call>")]
    (call,) = chat.parse(calls[0].answer).tool_calls
    assert call.arguments and call.name in tokenizer.decode(calls[0].prompt, special=True)
    assert max(len(e.prompt) + len(e.answer) for e in seen) < 512


def test_the_recipe_by_the_clock(tmp_path: Path) -> None:
    """What is run on a GPU, in small: sheets that another process makes, an end, an average."""
    few = ["batch=16", "save_every=100", "log_every=1", "warmup=1"]
    words = ["--device", "cpu", "--minutes", "0.05", "--rows", "7", "--workers", "1"]
    run(tmp_path, *words, "--look", "0", "--set", *few)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert not (tmp_path / "shapes.jsonl").exists()
    assert len(dg.load(tmp_path / "model").model.blocks) == 9
    # It comes back from the machine it was trained on as files of at most 16 MiB.
    assert all(file.stat().st_size < 1 << 24 for file in (tmp_path / "model").iterdir())


def test_sheets_hold_every_kind_of_example_and_are_the_same_elsewhere(tmp_path: Path) -> None:
    edition.write_words(tmp_path)
    form = edition.Form(rows=13, length=edition.LENGTH, width=32, eos=1, pad=0)
    make = edition.Sheeter(tmp_path, 32, 5, form)
    feed = edition.source(edition.chat_of(tmp_path), 1, 0)
    with edition.Ahead(make, 2) as ahead:
        for step in range(3):
            here, there = make(step), ahead(step)
            assert (here.numbers == there.numbers).all() and here.left_out == 0
            texts = [row.tobytes() for row in here.numbers[0]]
            for number in range(32 * (5 + step), 32 * (6 + step)):
                said = [*feed(number).prompt, *feed(number).answer]
                assert any(np.array(said, np.int16).tobytes() in text for text in texts)


def test_the_recipe_s_own_rendering_is_the_cage_s(tmp_path: Path) -> None:
    edition.write_words(tmp_path)
    trusted = edition.chat_of(tmp_path)
    ids = edition.SpecialIds(eos_token_id=(1, 5))
    caged = edition.Chat.from_folder(tmp_path, trusted.tokenizer, ids)
    feeds = [edition.source(chat, 1, 0) for chat in (trusted, caged)]
    for number in range(64):
        one, other = (feed(number) for feed in feeds)
        assert (one.prompt, one.answer) == (other.prompt, other.answer)
