"""Checkpoints of strangers, made at random: each opens and answers, or is refused in a sentence.

    python tests/hostile_folders.py FIRST COUNT

tries many, each in a process with limits, and prints those that did neither, or took too much. The
suite tries a few, in its own process.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffusiongemma as dg
from diffusiongemma.core.errors import DiffusionGemmaError
from diffusiongemma.engine.open import SHIPPED

JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SECONDS, MEGABYTES = 4.0, 600
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 0.5, 1e308, float("nan"), "", "x", "\ud800",
    "\u202e\x1b[2J", "a" * 5000, [], {}, [[]], [1], {"a": 1}, [None] * 3000, {"type": []},
    [{"name": [], "template": "x"}], "{{ 'a' * 10**9 }}", "{{ messages[0].__class__ }}",
)  # fmt: skip
_SLOW = {"type": "Split", "behavior": "Isolated", "invert": False}
_STEPS: tuple[Any, ...] = (
    {"type": {}}, {"type": []}, {"type": "Magic"}, {"type": "TemplateProcessing", "single": [1]},
    {**_SLOW, "pattern": {"Regex": "(?:[ a-z]|[a-z][ a-z]){1,26}[^a-z ]|."}},
    {**_SLOW, "pattern": {"Regex": ".{1,200}.{1,200}.{1,200}(?!\\s|\\S)|."}},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"},
    {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 60},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 99_999},
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 200},
)  # fmt: skip
AIMED: dict[str, dict[str, tuple[Any, ...]]] = {
    "tokenizer.json": dict.fromkeys(
        ("normalizer", "pre_tokenizer", "decoder", "post_processor"), _STEPS
    )
    | {"more": ([[]] * 5_000_000, {"a": [0.5] * 5_000_000})},
    "tokenizer_config.json": {
        "bos_token": ("<bos>" * 200_000, "<bos>" * 5_000, [], {"content": "x" * 2_000_000}),
        "more": ([[]] * 2_000_000,),
        "extra_special_tokens": ({f"{n}_token": "x" * 90 for n in range(9_999)}, []),
    },
    "config.json": {"more": ([[]] * 2_000_000,), "rope_scaling": ODD, "dtype": ODD},
    "generation_config.json": {"eos_token_id": ODD, "sampler_config": ODD, "t_max": ODD},
}
"""What strangers would think of: keys of a file, and values for them."""


def spoilt(value: Any, dice: random.Random) -> Any:
    """A parsed file with something in it that is something else, or one more."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        place = value
        while True:
            keys = [*place] if isinstance(place, dict) else [*range(len(place))]
            if not keys:
                break
            key = dice.choice(keys)
            if isinstance(place[key], dict | list) and dice.random() < 0.7:
                place = place[key]
                continue
            place[key] = copy.deepcopy(dice.choice(ODD))
            break
    return value


def aimed(value: dict[str, Any], name: str, dice: random.Random) -> dict[str, Any]:
    """A parsed file in which one key has a value that was thought of."""
    key = dice.choice([*AIMED[name]])
    return value | {key: dice.choice(AIMED[name][key])}


def weights(dice: random.Random) -> bytes:
    """A file of weights whose list of tensors is spoilt, or a few of its bytes."""
    whole = bytearray((SHIPPED / "model.safetensors").read_bytes())
    size = struct.unpack("<Q", whole[:8])[0]
    if dice.random() < 0.5:
        for _ in range(dice.randint(1, 20)):
            whole[dice.randrange(8 + size)] = dice.randrange(256)
        return bytes(whole)
    head = json.dumps(spoilt(json.loads(whole[8 : 8 + size]), dice)).encode()
    return struct.pack("<Q", len(head)) + head + bytes(whole[8 + size :])


def odd_file(path: Path, dice: random.Random) -> None:
    """Something that is no file, or one without sense."""
    kind = dice.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(dice.choice(["/dev/zero", "/dev/tty", path.name, "/proc/self/mem"]))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_bytes(dice.choice([b"", b"\xff", b"[" * 9999, b'{"a":' + b"9" * 9999 + b"}"]))


def make(folder: Path, seed: int) -> None:
    """A folder in which one or two files are not as they should be."""
    dice = random.Random(seed)
    folder.mkdir()
    for file in SHIPPED.iterdir():
        (folder / file.name).symlink_to(file)
    for name in dice.sample([*JSON, "model.safetensors"], dice.randint(1, 2)):
        kind, path = dice.random(), folder / name
        path.unlink()
        if kind < 0.2:
            odd_file(path, dice)
        elif name not in JSON:
            path.write_bytes(weights(dice))
        else:
            value = json.loads((SHIPPED / name).read_text())
            made = aimed(value, name, dice) if kind < 0.5 else spoilt(value, dice)
            path.write_text(json.dumps(made))


def attempt(folder: Path) -> str:
    """Open a folder, answer, and save it; what was said where it was refused."""
    try:
        gemma = dg.load(folder, device="cpu", progress=False)
        words = "the quick brown fox jumps over " * 12 if gemma.chat else [30, 31]
        gemma.generate(words, seed=1, max_new_tokens=4, canvas_length=4, max_denoising_steps=2)
        gemma.save(folder.with_name("saved"), overwrite=True)
    except DiffusionGemmaError as error:
        return str(error)
    return ""


def limited(work: Callable[[], str]) -> str:
    """Do it in a child with limits; what was wrong with it, or nothing."""
    begun, (source, sink) = time.monotonic(), os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        before = resource.getrusage(resource.RUSAGE_SELF)
        wrong = ""
        try:
            said = work()
            wrong = "" if said.isprintable() or not said else f"it steers: {said!r}"
        except BaseException:
            wrong = traceback.format_exc()
        after = resource.getrusage(resource.RUSAGE_SELF)
        if (used := after.ru_utime - before.ru_utime) > SECONDS:
            wrong += f" it took {used:.1f} s"
        if (grown := (after.ru_maxrss - before.ru_maxrss) / 1024) > MEGABYTES:
            wrong += f" it took {grown:.0f} MB"
        os.write(sink, wrong.encode(errors="replace")[:60_000])
        os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as pipe:
        wrong = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    died = f" it died of {status} after {time.monotonic() - begun:.0f} s" if status else ""
    return wrong + died


def main(first: int, count: int) -> int:
    """Try so many folders; how many went wrong."""
    torch.set_num_threads(1)
    dg.load(device="cpu", progress=False).generate("x", max_new_tokens=4)  # the children have it
    wrong = 0
    for seed in range(first, first + count):
        place = Path(tempfile.mkdtemp())
        try:
            make(place / "model", seed)
            if said := limited(lambda place=place: attempt(place / "model")):
                wrong += 1
                print(f"seed {seed}: {said}", flush=True)
        finally:
            shutil.rmtree(place)
    print(f"{count} folders, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])) > 0)
