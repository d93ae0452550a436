"""Tokenizers whose steps lengthen a text: those of real models pass, bombs are one sentence."""

import base64
import json
import struct
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.dialog import growth
from diffusiongemma.dialog.tokenizer import Tokenizer

Step = dict[str, Any]
TWICE: Step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
REST: Step = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
META: Step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTES: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
BYTES |= {"trim_offsets": True}
SPLIT: Step = {
    "type": "Split", "behavior": "Isolated", "invert": False,
    "pattern": {"Regex": r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+"},
}  # fmt: skip
A: Step = {"Sequence": {"id": "A", "type_id": 0}}
B: Step = {"Sequence": {"id": "B", "type_id": 0}}


def table(*texts: str) -> str:
    """A table as SentencePiece packs it, with an index of nothing."""
    index = b"\0" * 16
    raw = struct.pack("<I", len(index)) + index + b"".join(t.encode() + b"\0" for t in texts)
    return base64.b64encode(raw).decode()


PIECES: Step = {"type": "Precompiled", "precompiled_charsmap": table("f", "ﷺ" * 11, "")}


def chain(key: str, *steps: Step) -> Step:
    return {"type": "Sequence", key: list(steps)}


def written(folder: Path, **parts: Any) -> Path:
    """A tokenizer of two letters with these parts."""
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {"a": 0, "b": 1}, "merges": [],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data | parts))
    return folder


REAL: dict[str, dict[str, Any]] = {
    "gemma": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {**SPLIT, "pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [A], "pair": [A, B], "special_tokens": {},
        },
        "decoder": chain(
            "decoders",
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ),
    },
    "llama 2": {
        "normalizer": chain(
            "normalizers",
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ),
        "decoder": chain(
            "decoders",
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
    },
    "gpt 2": {"pre_tokenizer": BYTES, "post_processor": BYTES, "decoder": BYTES},
    "llama 3": {"pre_tokenizer": chain("pretokenizers", SPLIT, BYTES), "decoder": BYTES},
    "qwen": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": chain("pretokenizers", SPLIT, BYTES),
        "post_processor": BYTES,
        "decoder": BYTES,
    },
    "deepseek": {
        "normalizer": chain("normalizers"),
        "pre_tokenizer": chain("pretokenizers", SPLIT, SPLIT, SPLIT, BYTES),
        "decoder": BYTES,
    },
    "bert": {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
    "t5": {"normalizer": PIECES, "pre_tokenizer": META, "decoder": META},
    "xlm roberta": {
        "normalizer": chain("normalizers", PIECES, REST),
        "pre_tokenizer": chain("pretokenizers", {"type": "WhitespaceSplit"}, META),
        "decoder": META,
    },
    "albert": {
        "normalizer": chain(
            "normalizers",
            {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
            {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Lowercase"},
            PIECES,
            {**REST, "content": " "},
        ),
        "pre_tokenizer": META,
        "decoder": META,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_steps_of_real_models_are_taken(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, **REAL[name]) / "tokenizer.json"
    growth.check(file.read_bytes(), file)


BOMBS: dict[str, dict[str, Any]] = {
    "doubling": {"normalizer": chain("normalizers", *[TWICE] * 31)},
    "chains in chains": {
        "normalizer": chain("normalizers", *[chain("normalizers", *[TWICE] * 4)] * 8)
    },
    "types left out": {
        "normalizer": {
            "normalizers": [{key: TWICE[key] for key in ("pattern", "content")}] * 31,
        }
    },
    "a long text for a letter": {"normalizer": {**TWICE, "content": "a" * 1_000_000}},
    "between all letters": {
        "normalizer": chain("normalizers", *[{**TWICE, "pattern": {"String": ""}}] * 31)
    },
    "patterns": {
        "normalizer": chain("normalizers", *[{**TWICE, "pattern": {"Regex": "a?"}}] * 31)
    },
    "in front": {"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}},
    "unicode": {
        "normalizer": chain(
            "normalizers", *[{**TWICE, "content": "ﷺ"}, {"type": "NFKC"}] * 8
        )
    },
    "bytes of bytes": {"pre_tokenizer": chain("pretokenizers", *[BYTES] * 31)},
    "bytes of bytes before": {"normalizer": chain("normalizers", *[{"type": "ByteLevel"}] * 31)},
    "spaces": {
        "pre_tokenizer": chain("pretokenizers", *[META, {**META, "replacement": " "}] * 9)
    },
    "both together": {
        "normalizer": chain("normalizers", *[TWICE] * 4),
        "pre_tokenizer": chain("pretokenizers", *[BYTES] * 4),
    },
    "a prompt many times": {
        "post_processor": {
            "type": "TemplateProcessing", "single": [A] * 1000, "pair": [A, B],
            "special_tokens": {},
        }
    },
    "of a table": {
        "normalizer": {**PIECES, "precompiled_charsmap": table("a", "b" * 1_000_000)}
    },
    "of a table that is none": {"normalizer": {**PIECES, "precompiled_charsmap": "!"}},
    "replies": {"decoder": chain("decoders", *[TWICE] * 31)},
    "a token of the file": {
        "normalizer": chain("normalizers", *[TWICE] * 31),
        "added_tokens": [{
            "id": 0, "content": "a", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": True, "special": False,
        }],
    },
    "steps of another day": {"normalizer": chain("normalizers", *[{"type": "Magic"}] * 31)},
}  # fmt: skip


def test_a_text_is_as_long_as_its_steps_may_make_it(tmp_path: Path) -> None:
    most = 1 << 23
    steps = {"normalizer": {**TWICE, "content": "a" * 60}}
    long, plain = (Tokenizer.from_folder(written(tmp_path, **parts)) for parts in (steps, {}))
    assert long is not None and plain is not None
    assert long.encode("b" * (most // 60)) and plain.encode("b" * (most // 9))
    for tokenizer, size in ((long, most // 60 + 1), (plain, most + 1)):
        with pytest.raises(
            InputError, match=r"a text of [0-9,]+ bytes is too long for .*; shorten"
        ):
            tokenizer.encode("b" * size)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_sentence(name: str, tmp_path: Path) -> None:
    what = "a token" if name == "replies" else "a text"
    match = rf"tokenizer\.json has steps that may make {what} \S+ times as long, and at most 64"
    with pytest.raises(CheckpointError, match=match):
        Tokenizer.from_folder(written(tmp_path, **BOMBS[name]))


SLOW: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern": (
        {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(?:.|..){1,28}b"}}},
        r"the pattern '\(\?:\.\|\.\.\)\{1,28\}b', which repeats what matches in several ways",
    ),
    "a pattern that rewrites": (
        {"normalizer": {**REST, "pattern": {"Regex": "(?:a?)+"}}},
        r"the pattern '\(\?:a\?\)\+', which repeats",
    ),
    "a pattern for a reply": (
        {"decoder": chain("decoders", {**REST, "pattern": {"Regex": ".*.*b"}})},
        r"patterns that may try 1\.7e\+07 ways from each letter of a text",
    ),
    "many patterns": (
        {"pre_tokenizer": chain("pretokenizers", *[SPLIT] * 20)},
        r"patterns that may try \S+ ways from each letter of a text, and at most 65536",
    ),
    "many steps": (
        {"normalizer": chain("normalizers", *[{"type": "StripAccents"}] * 100)},
        "101 steps, and at most 100 are taken",
    ),
    "long words": (
        {"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {"a": 0}}},
        "words of 1000000000 letters, and at most 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_what_would_take_minutes_for_a_page(name: str, tmp_path: Path) -> None:
    parts, why = SLOW[name]
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json (has|takes) {why}.*; do not use"):
        Tokenizer.from_folder(written(tmp_path, **parts))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": {}}},
        {"decoder": {"type": []}},
        {"post_processor": {"type": "TemplateProcessing", "single": [1, None, True]}},
        {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": []}}},
        {"model": []},
        {"model": {"type": "WordPiece", "max_input_chars_per_word": 0.5}},
    ],
)
def test_values_of_other_kinds(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json (is not a tokenizer|takes words)"):
        Tokenizer.from_folder(written(tmp_path, **parts))


def test_more_than_fits_in_memory(tmp_path: Path) -> None:
    written(tmp_path, more=[[]] * 4_500_000)
    with pytest.raises(CheckpointError, match=r"has 9,000,\d{3} commas and brackets, and at most"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            '"pre_tokenizer": null',
            '"pre_tokenizer": null, "normalizer": null',
            "a key stands twice",
        ),
        ('"padding": null', '"padding": ' + "[" * 9999 + "]" * 9999, "recursion"),
        ('"padding": null', '"padding": ' + "9" * 9999, "digits"),
    ],
)
def test_what_might_be_read_in_two_ways(old: str, new: str, why: str, tmp_path: Path) -> None:
    file = written(tmp_path, normalizer=chain("normalizers", *[TWICE] * 31)) / "tokenizer.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=rf"is not a tokenizer .*{why}.*; fetch the file"):
        Tokenizer.from_folder(tmp_path)


def test_no_letter_grows_more_than_the_table_says() -> None:
    changed = [
        letter
        for letter in map(chr, range(1, sys.maxunicode + 1))
        if not "\ud800" <= letter <= "\udfff"
        and (
            unicodedata.normalize("NFKD", letter) != letter
            or letter.lower() != letter
            or "CJK" in unicodedata.name(letter, "")[:3]
        )
    ]
    assert len(changed) > 90_000
    for name, most in growth._FORMS.items():
        form = getattr(normalizers, name)()
        worst = max(len(form.normalize_str(a).encode()) / len(a.encode()) for a in changed)
        assert most - 1 < worst <= most, name


def grown(steps: list[Step], text: str) -> tuple[str, float]:
    """A text after these steps, and how many times longer it may be as we tell."""
    bert = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    filled = [s | bert | {"lowercase": True} if s["type"] == "BertNormalizer" else s for s in steps]
    made = normalizers.Sequence([])
    made.__setstate__(json.dumps(chain("normalizers", *filled)).encode())
    return made.normalize_str(text), growth._growth([chain("normalizers", *filled)])[1]


def replace(kind: str, pattern: str, content: str) -> Step:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


WORDS = st.text("ab ▁éﷺ", min_size=1, max_size=4)
STEPS = st.one_of(
    st.builds(replace, st.just("String"), WORDS, st.text("ab ▁éﷺ", max_size=4)),
    st.builds(replace, st.just("Regex"), st.sampled_from(["a", ".", " {2,}", "a|b"]), WORDS),
    st.builds(lambda a: {"type": "Prepend", "prepend": a}, WORDS),
    st.sampled_from([{"type": name} for name in (*growth._FORMS, "ByteLevel", "StripAccents")]),
)


@settings(deadline=None)
@given(steps=st.lists(STEPS, max_size=4), text=st.text("ab ▁éﷺ각İ", max_size=6))
def test_no_text_grows_more_than_is_told(steps: list[Step], text: str) -> None:
    after, most = grown(steps, text)
    assert len(after.encode()) <= most * max(1, len(text.encode()))


@pytest.mark.parametrize("pattern", ["", "a?", "a*", "^", "$", "(?=a)"])
@pytest.mark.parametrize("text", ["", "a", "b", "aaa", "bbb", "ﷺ a"])
def test_patterns_of_nothing(pattern: str, text: str) -> None:
    """Alone: with other steps behind them the library itself falls over these."""
    for kind in ("Regex", "String") if not pattern else ("Regex",):
        after, most = grown([replace(kind, pattern, "ﷺ▁")], text)
        assert len(after.encode()) <= most * max(1, len(text.encode()))
