"""Two hundred answers of an earlier commit, which the same requests must still give.

    python tests/recorded.py        # makes the record anew; say why in the commit that does

Bits follow from the processor, the compiler and torch, so the record says what it was made with,
and is compared where these are the same.
"""

import hashlib
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

import diffusiongemma as dg
import quantised_toys
import toys
from diffusiongemma.kernels.native import build
from toys_words import write_toy_with_words

FILE = Path(__file__).with_name("recorded.json")
COUNT = 200
QUESTIONS = (
    "What is 17 + 25?", "Sort: 31 13 33 11 3 1 30 10", "Reverse: stone", "483 - 277 =",
    "Sort: 8 5 9", "What is 905 + 88?", "Repair: the cta sat", "Reverse: an apple a day",
)  # fmt: skip
Case = dict[str, Any]


def ids_toy(folder: Path) -> None:
    """Two kinds of layers, a narrow window, no words."""
    toys.write(toys.Toy(seed=31, canvas=8, window=6), folder)


def odd_toy(folder: Path) -> None:
    """Heads that the compiled trunk does not take."""
    toys.write(toys.Toy(seed=14, hidden=80, head_dim=24, full_head_dim=40, partial=0.2), folder)


def fp8_toy(folder: Path) -> None:
    """Weights in eight bits."""
    quantised_toys.write(toys.Toy(seed=5, layers="fsf", canvas=24), folder)


NETWORKS: dict[str, Callable[[Path], None] | None] = {
    "shipped": None, "ids": ids_toy, "odd": odd_toy, "words": write_toy_with_words, "fp8": fp8_toy,
}  # fmt: skip
DOORS = ("generate", "many", "stream", "steps", "replace", "converse")


def machine() -> dict[str, str]:
    """What bits follow from."""
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False)
    try:
        facts = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        facts = []
    flags = [line for line in facts if line.startswith(("model name", "flags"))]
    return {
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "processor": hashlib.sha256("".join(flags).encode()).hexdigest()[:16],
        "compiler": compiler.stdout.split("\n")[0],
    }


def cases() -> list[Case]:
    """Requests drawn at random, all of which stay what they are for good."""
    dice = random.Random(20)
    return [_case(dice, number) for number in range(COUNT)]


def _case(dice: random.Random, number: int) -> Case:
    network = (*["shipped"] * 5, *["ids"] * 5, *["odd"] * 3, *["words"] * 4, *["fp8"] * 2)
    case: Case = {"network": dice.choice(network), "door": DOORS[number % len(DOORS)]}
    worded = case["network"] in ("shipped", "words")
    case["dtype"] = dice.choice(["float32", "bfloat16"])
    case["operations"] = dice.random() < 0.4
    if case["door"] == "converse" and not worded:
        case["door"] = "generate"
    case["prompts"] = [
        dice.choice(QUESTIONS) if worded else _ids(dice) for _ in range(dice.randint(2, 4))
    ]
    case["seeds"] = [dice.getrandbits(64) for _ in case["prompts"]]
    case["options"] = _options(dice, case)
    case["rule"] = dice.random() < 0.2
    if case["network"] == "words":
        case["stop"] = dice.choice([[], ["a"], ["qu", "\\"]])
        case["image"] = case["door"] != "many" and dice.random() < 0.4
        if dice.random() < 0.3:
            case["prompts"][0] *= dice.choice([5, 80])  # past a window; past a chunk
    return case


def _ids(dice: random.Random) -> list[int]:
    tokens = dice.choice([1, 7, 30, 127, 128, 129, 300, 495, 505])  # a context has 512
    return [dice.randrange(3, 300) for _ in range(tokens)]


def _options(dice: random.Random, case: Case) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if case["network"] != "shipped":
        options["max_denoising_steps"] = dice.randint(1, 5)
        options["max_new_tokens"] = dice.randint(1, 60)
        options["confidence_threshold"] = dice.choice([0.005, 2.0, 9.0])
    elif dice.random() < 0.5:
        options["max_denoising_steps"] = dice.randint(1, 12)
        options["max_new_tokens"] = dice.randint(1, 80)
    if dice.random() < 0.5:
        options["t_min"], options["t_max"] = sorted(dice.uniform(0.05, 1.5) for _ in "12")
    if dice.random() < 0.5:
        options["entropy_bound"] = dice.choice([0.0, 0.01, 0.3, 5.0])
    if dice.random() < 0.3:
        options["stability_threshold"] = dice.randint(0, 2)
    if dice.random() < 0.3:
        options["canvas_length"] = dice.choice([1, 3, 8])
        options.setdefault("max_new_tokens", 30)  # one by one to a context's end takes minutes
    return options


class Networks:
    """Opened when first asked for, and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, str], dg.Gemma] = {}

    def get(self, name: str, dtype: str) -> dg.Gemma:
        """One of `NETWORKS` in a format."""
        if (name, dtype) not in self._open:
            write, folder = NETWORKS[name], self._folder / name
            if write is not None and not folder.exists():
                write(folder)
            self._open[name, dtype] = dg.load(None if write is None else folder, dtype=dtype)
        return self._open[name, dtype]


def _rule(readout: Any) -> torch.Tensor:
    place = torch.arange(readout.entropy_BL.shape[1])
    return (readout.entropy_BL < 4.0) & (place % 5 > 0)


def answer(networks: Networks, case: Case) -> list[Any]:
    """What a case's door gives, as JSON has it."""
    gemma = networks.get(case["network"], case["dtype"])
    off = mock.patch.object(build, "_found", lambda: (None, "off here"))
    with off if case["operations"] else mock.patch.object(build, "_found", build._found):
        return json.loads(json.dumps(list(_answers(gemma, case))))


def _answers(gemma: dg.Gemma, case: Case) -> Iterator[Any]:
    prompts, seeds, door = case["prompts"], case["seeds"], case["door"]
    options = dict(case["options"])
    if case["rule"]:
        options["rule"] = _rule
    if case.get("stop") and door not in ("steps", "replace"):
        options["stop"] = case["stop"]
    if door == "many":
        yield from map(_reply, gemma.generate_many(prompts, seed=seeds, **options))
    elif door == "converse":
        talk = gemma.converse(**options)
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield _reply(talk.generate(prompt, seed=seed))
    else:
        if case.get("image"):
            options["images"] = [Image.linear_gradient("L").resize((50, 30))]
        yield from _one(gemma, door, prompts[0], seeds[0], options)


def _one(gemma: dg.Gemma, door: str, prompt: Any, seed: int, options: Any) -> Iterator[Any]:
    if door == "generate":
        yield _reply(gemma.generate(prompt, seed=seed, **options))
    elif door == "stream":
        *events, last = gemma.stream(prompt, seed=seed, **options)
        assert isinstance(last, dg.Finished)
        yield [_digest(repr(events).encode()), len(events), _reply(last.reply)]
    else:
        for step in gemma.steps(prompt, seed=seed, **options):
            seen = (step.before_BL, step.hidden_BLD, step.readout.entropy_BL, step.step.canvas_BL)
            yield _digest(b"".join(map(_bytes, seen)))
            if door == "replace":
                step.replace(step.step.canvas_BL.flip(-1))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _reply(reply: dg.Reply) -> list[Any]:
    steps, revisions = list(reply.stats.steps), reply.stats.revisions
    return [list(reply.tokens), reply.finish_reason, steps, revisions, reply.text]


@lru_cache
def record() -> dict[str, Any]:
    """What was recorded."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    """Make the record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        networks, answers = Networks(Path(folder)), []
        for number, case in enumerate(cases()):
            answers.append(answer(networks, case))
            print(f"{number + 1} of {COUNT}", end="\r", flush=True)
    lines = ",\n".join(json.dumps(one, ensure_ascii=True) for one in answers)
    text = f'{{"machine": {json.dumps(machine())}, "answers": [\n{lines}\n]}}\n'
    made = FILE.with_suffix(".new")
    made.write_text(text, encoding="utf-8")
    os.replace(made, FILE)


if __name__ == "__main__":
    main()
