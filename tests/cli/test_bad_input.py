"""Every bad input: one sentence that says what, got and what to do; exit code 2; no traceback.

`refused` asserts the form, each test the words.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_help import QUICK, edit

Refused = Callable[..., str]


def says(said: str, pattern: str) -> None:
    assert re.search(pattern, said), said


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (["--sed", "1"], r"unknown option '--sed'; did you mean '--seed'\?"),
        (["--entropy-bond=1"], r"unknown option '--entropy-bond'; did you mean '--entropy-bound'"),
        (["--max-new", "3"], r"unknown option '--max-new'; did you mean '--max-new-tokens'\?"),
        (["-x"], r"unknown option '-x'; known: .*--seed"),
        (["-o", "entropy_bond=1"], r"unknown option 'entropy_bond'; did you mean 'entropy_bound'"),
        (["-o", "seed"], r"-o/--option: must be NAME=VALUE or NAME VALUE, got 'seed'"),
        (["-o", "t_max", "warm"], r"t_max must be a number from 0.001 to 1e6, got 'warm'"),
        (["-o", "seed", "5"], r"'seed' is no sampling option; write --seed 5"),
        (["-o", "t_max=warm"], r"t_max must be a number from 0.001 to 1e6, got 'warm'"),
        (["--t-max", "nan"], r"t_max must be a number from 0.001 to 1e6, got nan"),
        (["--t-max", "0.2", "--t-min", "0.3"], r"t_max must not be below t_min, got 0.2 < 0.3"),
        (["--t-min", "0.9"], r"t_max must not be below t_min, got 0.8 < 0.9"),
        (["--max-new-tokens", "0"], r"max_new_tokens must be a whole number of at least 1, got 0"),
        (["--max-new-tokens", "2.5"], r"max_new_tokens must be a whole number .* got '2.5'"),
        (["--max-denoising-steps", "none"], r"max_denoising_steps must be .* got 'none'"),
        (["--canvas-length", "10000"], r"canvas_length 10000 is longer than the context .* 512"),
        (["--seed", "lucky"], r"--seed: must be a whole number from 0 to .*, got 'lucky'"),
        (["--seed"], r"--seed: expected one argument"),
        (["--pace", "-1"], r"--pace: must be 0 to 60 seconds, got '-1'"),
        (["--pace", "nan"], r"--pace: must be 0 to 60 seconds, got 'nan'"),
        (["--pace", "soon"], r"--pace: must be 0 to 60 seconds, got 'soon'"),
        (["--json", "--pace", "0"], r"--pace has no meaning with --json; omit one of them"),
        (["--json", "--no-stats"], r"--no-stats has no meaning with --json; omit one of them"),
        (["--stop", ""], r"stop must be a text or a list of texts, none of them empty"),
        (["more"], r"'more' is one word too many; put a prompt in quotes"),
        (["--dtype", "bfloat32"], r"unknown dtype 'bfloat32'; did you mean '"),
        (["--image-tokens", "70"], r"--image-tokens has no meaning without a picture; add -i"),
        (["--image-tokens", "71", "-i", "x"], r"unknown image tokens '71'; known: 1120, 140"),
        (["--device", "tpu"], r"device 'tpu'.*use cpu, cuda or cuda:N"),
        (["--revision", "v2"], r"has no revision 'v2'; omit revision"),
        (["--tools", "/nowhere.json"], r"tools '/nowhere.json' cannot be read: No such file"),
    ],
)
def test_options(given: list[str], pattern: str, words: Path, refused: Refused) -> None:
    says(refused("-m", words, "hello", *given), pattern)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_a_gpu_that_is_not_there(words: Path, refused: Refused) -> None:
    said = refused("-m", words, "hello", "--device", "cuda")
    says(said, r"'cuda' was asked for, but torch sees no CUDA device; use cpu")


def test_tools_that_are_none(words: Path, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "tools.json"
    for content, pattern in [("{", r"is not JSON .*; write a list of tools"), ("[1]", r"tool")]:
        file.write_text(content)
        says(refused("-m", words, "hello", "--tools", file), pattern)


def test_no_model_but_a_revision(refused: Refused) -> None:
    says(refused("hello", "--revision", "main"), r"the folder .* has no revision 'main'")


# --- the folder ------------------------------------------------------------------------------


def test_folders_that_are_none(words: Path, tmp_path: Path, refused: Refused) -> None:
    for model, pattern in [
        (tmp_path / "nowhere", r"no folder at .*nowhere; check the path, or give a hub id"),
        ("nonsense", r"'nonsense' is neither a folder nor a hub id; give a path"),
        (words / "config.json", r"is a file; give the folder that holds config.json"),
        (tmp_path, r"has no config.json; give the folder of a checkpoint"),
    ]:
        says(refused("-m", model, "hello"), pattern)


def test_a_hub_id_without_a_network(refused: Refused) -> None:
    says(refused("-m", "nobody/nothing", "hello", "--offline"), r"is not in .*; load it once while")


def test_a_truncated_file(copy: Path, refused: Refused) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    says(refused("-m", copy, "hello"), r"model.safetensors is truncated or damaged .*; fetch it")
    file.write_bytes(b"")
    says(refused("-m", copy, "hello"), r"model.safetensors is truncated or damaged .*; fetch it")


def test_missing_files(copy: Path, refused: Refused) -> None:
    (copy / "model.safetensors").unlink()
    says(refused("-m", copy, "hello"), r"has neither model.safetensors nor model.safetensors.index")
    (copy / "pytorch_model.bin").write_bytes(b"")
    says(refused("-m", copy, "hello"), r"pytorch_model.bin is a pickle, which is never opened")
    table = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    says(refused("-m", copy, "hello"), r"lacks 2 of 2 shards: model-00001-of.*; fetch them again")


def test_tensors_that_do_not_fit(copy: Path, refused: Refused) -> None:
    file = copy / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("q_proj.weight") and "vision" not in name)
    short = whole[name].shape[0] - 1
    for tensors, pattern in [
        (whole | {name: whole[name][:-1].clone()}, rf"1 of another shape: .*\({short}, 64\)"),
        ({k: v for k, v in whole.items() if k != name}, r"1 missing: .*q_proj.weight"),
        (whole | {"surprise": torch.zeros(1)}, r"1 unexpected: surprise"),
        (
            whole | {name: whole[name].to(torch.int8)},
            r"format other than .*: .*q_proj.weight as I8 .*\. Check",
        ),
    ]:
        save_file(tensors, file, metadata={"format": "pt"})
        says(refused("-m", copy, "hello"), pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"model_type": "gemma4"},
            r"has model_type 'gemma4'; this package opens 'diffusion_gemma'",
        ),
        (
            {"quantization_config": {"bits": 4}},
            "only FP8-dynamic as compressed-tensors writes it is built",
        ),
        ({"text_config": None}, r"has no section text_config; is it the file of this model"),
        ({"canvas_length": "wide"}, r"config.json .*canvas_length|wrong type"),
        ({"dtype": "float8_e4m3fn"}, r"dtype = 'float8_e4m3fn', only bfloat16 or"),
    ],
)
def test_configs(changes: dict[str, object], pattern: str, copy: Path, refused: Refused) -> None:
    edit(copy / "config.json", **changes)
    says(refused("-m", copy, "hello"), pattern)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("config.json", "{", r"config.json is not valid JSON: .*; fetch it again"),
        ("config.json", "[]", r"config.json holds a list, not an object"),
        (
            "generation_config.json",
            '{"t_max": "hot"}',
            r"t_max must be a number from 0.001 to 1e6, got 'hot'",
        ),
        ("tokenizer.json", "{}", r"tokenizer.json is not a tokenizer .*; fetch the file again"),
        ("chat_template.jinja", "{% if %}", r"is not a jinja template .*; fetch the file again"),
    ],
)
def test_files_of_words(
    name: str, content: str, pattern: str, copy: Path, refused: Refused
) -> None:
    (copy / name).write_text(content)
    says(refused("-m", copy, "hello"), pattern)


def test_another_checkpoints_tokenizer(copy: Path, refused: Refused) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"<extra{n}>": 300 + n for n in range(9)}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    says(
        refused("-m", copy, "hello"), r"has 309 tokens, the network 300; check that both come from"
    )


# --- the prompt ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[], [""], [" \n "]])
def test_no_prompt(prompt: list[str], words: Path, refused: Refused) -> None:
    says(refused("-m", words, *prompt), r"there is no prompt; write one in quotes or pipe one in")


def test_a_prompt_longer_than_the_context(words: Path, refused: Refused) -> None:
    said = refused("-m", words, "x" * 600)
    says(said, r"the prompt has 6\d\d tokens, and this model's context holds 512 .*; shorten it")


def test_a_prompt_that_is_no_text(
    words: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says(refused("-m", words, "\udcff"), r"lone surrogate at character \d+.*decode .* as UTF-8")
    file = tmp_path / "noise"
    file.write_bytes(b"\xff\xfe\x00")
    with file.open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        says(refused("-m", words), r"standard input is no text in UTF-8 .*; convert it first")


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("40 300", r"token id 300 is not in the vocabulary; ids lie in 0 to 299"),
        ("40 -1", r"token id -1 is not in the vocabulary; ids lie in 0 to 299"),
        ("999999999999999999", r"token id 999999999999999999 is not in the vocabulary"),
        ("9" * 5000, r"token ids are whole numbers with spaces or commas between them, got '999"),
        ("hello", r"token ids are whole numbers with spaces or commas between them, got 'hello'"),
        ("40 4.5", r"token ids are whole numbers .* got '4.5'"),
    ],
)
def test_ids(prompt: str, pattern: str, words: Path, bare: Path, refused: Refused) -> None:
    says(refused("-m", words, "--ids", prompt), pattern)
    said = refused("-m", bare, prompt)
    says(said, pattern)
    if "token ids are" in pattern:
        says(said, r"this checkpoint has no tokenizer, so a prompt is token ids")


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (["-s", "be brief"], r"system has no meaning for a prompt of token ids"),
        (["--think"], r"think has no meaning for a prompt of token ids"),
        (["--stop", "x"], r"stop needs a tokenizer, and this checkpoint has none"),
    ],
)
def test_what_ids_cannot_have(given: list[str], pattern: str, bare: Path, refused: Refused) -> None:
    says(refused("-m", bare, "40 41", *given, *QUICK), pattern)


# --- pictures --------------------------------------------------------------------------------


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_pictures_that_are_none(
    words: Path, picture: Path, tmp_path: Path, refused: Refused
) -> None:
    noise = tmp_path / "noise.png"
    noise.write_bytes(b"these are words")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:50])
    for file, pattern in [
        (tmp_path / "no.png", r"no.png' cannot be opened: no such file; check the path"),
        (tmp_path, r"cannot be opened: a folder; check the path"),
        (noise, r"noise.png' is not an image of a format read here .*; convert it to PNG or JPEG"),
        (cut, r"cut.png' is damaged or cut short .*; open it in an image editor|cannot be read"),
        (bomb(tmp_path / "bomb.png", 9_000), r"9000x9000 pixels, more than the 64 million"),
        (bomb(tmp_path / "huge.png", 60_000), r"huge.png' has .*, more than the 64 million"),
        ("https://example.com/cat.png", r"is a web address, and this package fetches nothing"),
    ]:
        says(refused("-m", words, "hello", "-i", file), pattern)


def test_a_bad_picture_is_told_of_before_a_model_is_looked_for(
    tmp_path: Path, refused: Refused
) -> None:
    says(refused("-m", tmp_path / "nowhere", "hello", "-i", tmp_path / "no.png"), r"no such file")


def test_a_picture_for_a_checkpoint_that_takes_none(
    copy: Path, bare: Path, picture: Path, refused: Refused
) -> None:
    says(
        refused("-m", bare, "40 41", "-i", picture),
        r"0 image placeholder tokens, but .*; give one image per",
    )
    tensors = load_file(copy / "model.safetensors")
    blind = {k: v for k, v in tensors.items() if "vision" not in k}
    save_file(blind, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy / "config.json", vision_config=None)
    said = refused("-m", copy, "hello", "-i", picture)
    says(said, r"holds an image, and this checkpoint takes none; leave it out, or load")


def test_nothing_is_written(copy: Path, refused: Refused, tmp_path: Path) -> None:
    before = sorted(file.name for file in tmp_path.rglob("*"))
    refused("-m", copy, "x" * 600)
    assert sorted(file.name for file in tmp_path.rglob("*")) == before
