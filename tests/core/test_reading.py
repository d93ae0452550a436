"""Small files from strangers: pipes, devices, floods and nests are refused, never waited for."""

import logging
import os
import socket
from pathlib import Path

import pytest

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.reading import (
    TABLES,
    find_json,
    name_unknown,
    read_bytes,
    read_json,
    read_text,
)


def put(path: Path, what: str) -> Path:
    """Something of that kind at a path."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "link to nothing":
        path.symlink_to("gone")
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pipe", "is no regular file; remove it, or fetch it again"),
        ("device", "is no regular file; remove it, or fetch it again"),
        ("folder", "is no regular file; remove it, or fetch it again"),
        ("socket", "cannot be read: No such device or address; check the file"),
        ("loop", "cannot be read: Too many levels of symbolic links; check"),
        ("link to nothing", "is a link to nothing; fetch it again"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name may not be long
    path = put(Path("a.json"), what)
    before = len(os.listdir("/proc/self/fd"))
    for read in (read_bytes, read_text, find_json, read_json):
        with pytest.raises(CheckpointError, match=message):
            read(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_bytes(path) is None and read_text(path) is None and find_json(path) is None
    with pytest.raises(CheckpointError, match=r"has no a\.json; is it a checkpoint\?"):
        read_json(path)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*embedded null .*; check"):
        read_bytes(tmp_path / "a\0b")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "a.json").symlink_to("blob")  # as in the hub's cache
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_no_more_is_read_than_a_file_of_its_kind_may_have(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert find_json(path, most=8) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"a\.json has over 7 bytes, too many for its kind"):
        find_json(path, most=7)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing, in no space
    with pytest.raises(CheckpointError, match=r"a\.json has over 16,777,216 bytes, too many"):
        find_json(path)


@pytest.mark.parametrize("value", ["[]", "{}", "0", '{"a":0}'])
def test_many_small_values(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [' + f"{value}," * 262_143 + "0]}")  # 14 MB and more in memory
    with pytest.raises(CheckpointError, match=r"has \d{3},\d{3} commas and br.*most 262,144 are"):
        find_json(path)
    assert find_json(path, most=TABLES) is not None


@pytest.mark.parametrize("pair", ['{"a":%s}', "[%s]"])
def test_nests(tmp_path: Path, pair: str) -> None:
    text = "1"
    for _ in range(98):
        text = pair % text
    path = tmp_path / "a.json"
    path.write_text(f'{{"in": {text}}}')
    assert find_json(path) is not None
    path.write_text(f'{{"in": {pair % (pair % text)}}}')
    with pytest.raises(CheckpointError, match=r"a\.json nests more than 100 deep; fetch it again"):
        find_json(path)


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_bytes("Größe\r\nund\rmehr\n".encode())
    assert read_text(path) == "Größe\nund\nmehr\n"
    path.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"a\.jinja is no text in UTF-8 .*; fetch it again"):
        read_text(path)


def test_unknown_keys_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="diffusiongemma"):
        name_unknown(tmp_path / "a.json", [])
        assert not caplog.messages
        for _ in range(3):
            name_unknown(tmp_path / "a.json", ["one", "two"])
        (said,) = caplog.messages
        assert said == (
            f"{tmp_path / 'a.json'} has keys that this version does not know: one, two; they "
            "change nothing here, and a saved copy keeps them"
        )
        name_unknown(tmp_path / "a.json", ["a\nb\x1b[31m", "x" * 10_000, *map(str, range(99))])
    said = caplog.messages[1]
    assert r"'a\nb\x1b[31m', 'xxx" in said and "0, 1, 2, 3, 4, 5, 6, 7 and 91 more;" in said
    assert said.isprintable() and len(said) < 500
