"""Time long histories and short prompts beside transformers, with one checkpoint's own files.

    python benchmarks/templates.py FOLDER [--calls 0 20 500] [--repeats 3] [--out FILE.json]

FOLDER holds tokenizer.json, tokenizer_config.json and chat_template.jinja. A history is a question
and so many calls of a tool with their results; thinking and a tool are on. Both sides work in
turns in one process, each figure is the least of the repeats by the clock, and the ids must be
equal. Rendering and encoding are timed apart; `prompt` is all that a user waits for.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.tokenizer import Tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of the next days.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
Work = Callable[[], Any]


def history(calls: int) -> list[dict[str, Any]]:
    """One question, then calls and results."""
    said: list[dict[str, Any]] = [{"role": "user", "content": "Where does it rain?"}]
    for n in range(calls):
        arguments = {"city": f"Oslo {n}", "days": 3}
        function = {"name": "weather", "arguments": arguments}
        calls_made = [{"id": f"{n}", "type": "function", "function": function}]
        said.append({"role": "assistant", "content": "", "tool_calls": calls_made})
        said.append({"role": "tool", "tool_call_id": f"{n}", "content": f"rain, {n} degrees"})
    return said


def race(ours: Work, theirs: Work, repeats: int) -> tuple[float, float]:
    """The least seconds of each, taken in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for side, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            work()
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0], best[1]


def measure(folder: Path, calls: int, repeats: int) -> dict[str, Any]:
    """One length of history."""
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None, f"{folder} has no tokenizer.json"
    chat = Chat.from_folder(folder, tokenizer, SpecialIds())
    assert chat.template is not None, f"{folder} has no chat template"
    template = chat.template
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    said = history(calls)
    options: dict[str, Any] = {"tools": [TOOL], "enable_thinking": True}
    variables = {
        **chat.names, **options, "messages": said, "documents": None, "add_generation_prompt": True,
    }  # fmt: skip

    def apply(tokenize: bool) -> Any:
        return theirs.apply_chat_template(
            said, add_generation_prompt=True, tokenize=tokenize, return_dict=False, **options
        )

    text = apply(tokenize=False)
    ids = apply(tokenize=True)
    assert template.render(variables) == text
    assert chat.render(said, tools=[TOOL], think=True).ids == ids
    found = {
        "rendering": race(lambda: template.render(variables), lambda: apply(False), repeats),
        "encoding": race(
            lambda: tokenizer.encode(text),
            lambda: theirs(text, add_special_tokens=False)["input_ids"],
            repeats,
        ),
        "prompt": race(
            lambda: chat.render(said, tools=[TOOL], think=True), lambda: apply(True), repeats
        ),
    }
    return {"calls": calls, "tokens": len(ids), **found}


def main() -> None:
    """Measure, print a table, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=[0, 20, 500])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}")
    print("milliseconds, ours and theirs; their ratio")
    rows = []
    for calls in args.calls:
        rows.append(measure(args.folder, calls, args.repeats if calls > 20 else 20 * args.repeats))
        print(f"{calls} calls, {rows[-1]['tokens']} tokens")
        for what in ("rendering", "encoding", "prompt"):
            ours, theirs = rows[-1][what]
            print(f"  {what:9} {ours * 1e3:10.2f} {theirs * 1e3:10.2f}  {ours / theirs:5.2f}")
    if args.out is not None:
        args.out.write_text(json.dumps({"seconds": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
