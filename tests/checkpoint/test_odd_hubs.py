"""A hub whose sizes, bytes, statuses or protocol are odd: one sentence each, and no file of it."""

import gzip
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants

from diffusiongemma.checkpoint.door import Watch
from hub_stand_in import Reply, Request, StandIn
from spoilt_hub import (
    COMMIT,
    CONFIG,
    GET_CONFIG,
    GET_LARGE,
    LARGE,
    TREE,
    WEIGHTS,
    body,
    entry,
    header,
    raw,
    refused,
    spoilt_hub,
    status,
    take,
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with spoilt_hub(tmp_path, monkeypatch) as state:
        yield state


def test_more_than_the_disk_holds(hub: StandIn, tmp_path: Path) -> None:
    said = refused(hub, tmp_path, entry(lfs__size=10**14))
    assert "needs 100,000.0 GB more, but the disk of" in said
    assert not any(asked.method == "HEAD" for asked in hub.requests)


@pytest.mark.parametrize("size", ["31", "0", "99999999999999999999", "-1", "1e3", "x", None])
def test_a_size_that_differs_from_the_list(hub: StandIn, tmp_path: Path, size: str) -> None:
    if size is None or not size.isdigit() or len(size) > 15:
        hub.spoil = header(CONFIG, "X-Linked-Size", size)
        assert (take(hub, tmp_path / "cache") / "config.json").is_file()  # the list knows it
        return
    said = refused(hub, tmp_path, header(CONFIG, "X-Linked-Size", size))
    assert f"promises '{size}' bytes of 'config.json', but lists 33" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WEIGHTS + b"x", "sent more than the 300000 bytes that it promised"),
        (WEIGHTS[:-1], "sent 299999 of the 300000 bytes"),
        (b"", "sent 0 of the 300000 bytes"),
        (WEIGHTS[:-1] + b"x", "sent other bytes of 'model.safetensors' than it promised"),
    ],
    ids=["more", "less", "nothing", "others"],
)
def test_a_file_is_what_was_promised(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, said: str
) -> None:
    assert said in refused(hub, tmp_path, body(GET_LARGE, text))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # the last one is whole
    assert said in refused(hub, tmp_path, body(GET_LARGE, text))
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 99_999
    ]
    hub.spoil = None
    assert (take(hub, tmp_path / "cache") / "model.safetensors").read_bytes() == WEIGHTS


def test_an_end_that_breaks_is_no_end(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes are there, as many as promised, and then the connection breaks."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    wrong = WEIGHTS[:-1] + b"x"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n493e0\r\n" + wrong
    said = refused(hub, tmp_path, raw(GET_LARGE, answer))
    assert "began 'model.safetensors' anew more than 5 times" in said


def test_nothing_is_waited_for_while_another_fetches(hub: StandIn, tmp_path: Path) -> None:
    """The library waits for the lock of who writes the same file; the hub is not to blame."""
    locks = tmp_path / "cache/.locks/models--acme--tiny-gemma"
    locks.mkdir(parents=True)
    watch, found = Watch(), []
    lock = FileLock(locks / f"{hashlib.sha256(WEIGHTS).hexdigest()}.lock")
    with lock:
        thread = threading.Thread(target=lambda: found.append(take(hub, tmp_path / "cache", watch)))
        thread.start()
        others = {"config.json", "more.json"}
        while not all(hub.gets(name) for name in others) or watch.open:
            assert not hub.closed.wait(0.01)
        assert not hub.gets("model.safetensors") and thread.is_alive()
    thread.join()
    assert (found[0] / "model.safetensors").read_bytes() == WEIGHTS


def test_the_end_of_a_body_without_length(hub: StandIn, tmp_path: Path) -> None:
    """A body that goes on for ever ends with what was promised."""
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(9_000_000)
    assert "sent more than" in refused(hub, tmp_path, raw(GET_LARGE, endless))


@pytest.mark.parametrize("where", [COMMIT, TREE, GET_CONFIG, GET_LARGE], ids="ctfl")
def test_packed_answers_are_not_unpacked(
    hub: StandIn, tmp_path: Path, where: Callable[[Request], bool]
) -> None:
    bomb = gzip.compress(bytes(50_000_000))

    def spoil(asked: Request, reply: Reply) -> None:
        header(where, "Content-Encoding", "gzip")(asked, reply)
        body(where, bomb)(asked, reply)

    assert "packed an answer as 'gzip'" in refused(hub, tmp_path, spoil)


def test_a_list_without_an_end(hub: StandIn, tmp_path: Path) -> None:
    def spoil(asked: Request, reply: Reply) -> None:
        header(TREE, "Link", f'<{hub.url}{asked.path}?cursor=1>; rel="next"')(asked, reply)

    assert "gave lists of files in over 256 parts" in refused(hub, tmp_path, spoil)


def test_a_list_without_measure(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusiongemma.checkpoint.door._LISTS", 100_000)
    said = refused(hub, tmp_path, body(TREE, b"[" + b" " * 200_000 + b"]"))
    assert "gave lists of files of over 100,000 bytes" in said


def test_a_list_in_pieces_of_a_byte(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the time of many bytes, and there would be 64 million of them."""
    monkeypatch.setattr("diffusiongemma.checkpoint.door._LISTS", 100_000)
    pieces = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * 1000
    said = refused(hub, tmp_path, raw(COMMIT, pieces))
    assert "gave lists of files of over 100,000 bytes" in said


@pytest.mark.parametrize("asked", [COMMIT, TREE], ids="ct")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"7",
        b'"x"',
        b"{}",
        b"[7]",
        b'[{"type": "file"}]',
        b"[" * 200_000,
        b"9" * 5_000,
        b"\xff\xfe{\x00}\x00",
        b'{"sha": "\xe9"}',
        b"<html>log in</html>",
        b'{"sha": NaN}',
        b"\x1b]0;title\x07",
    ],
    ids=range(15),
)
def test_odd_json(
    hub: StandIn, tmp_path: Path, asked: Callable[[Request], bool], text: bytes
) -> None:
    said = refused(hub, tmp_path, body(asked, text))
    assert re.search("is no JSON|as a commit|a list of files|is no name of a file", said)


@pytest.mark.parametrize("asked", [COMMIT, TREE, LARGE, GET_LARGE], ids="ctal")
@pytest.mark.parametrize("number", [204, 206, 300, 304, 404, 418, 429, 500, 999])
def test_odd_statuses(
    hub: StandIn, tmp_path: Path, asked: Callable[[Request], bool], number: int
) -> None:
    assert hub.url in refused(hub, tmp_path, status(asked, number, Retry_After="99999999"))


@pytest.mark.parametrize("asked", [TREE, LARGE, GET_LARGE], ids="tal")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 500,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/9.9 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    ],
    ids=range(15),
)
def test_what_is_no_http(
    hub: StandIn, tmp_path: Path, asked: Callable[[Request], bool], text: bytes
) -> None:
    assert hub.url in refused(hub, tmp_path, raw(asked, text))


def test_a_part_that_was_not_asked_for(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cuts["model.safetensors"] = 123_456
    for part in ("bytes 0-299999/300000", "bytes 120000-120001/300000", "x", ""):
        said = refused(hub, tmp_path, header(GET_LARGE, "Content-Range", part))
        hub.cuts["model.safetensors"] = 123_456
        assert "answered with another part of" in said or "sent" in said
