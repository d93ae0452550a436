"""Words of a hub that would become paths, or lead elsewhere: refused, and nothing lies outside."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusiongemma.checkpoint.door import Asked, Door, httpx
from diffusiongemma.checkpoint.fetch import FILES
from diffusiongemma.core.errors import CheckpointError
from hub_stand_in import Reply, Request, StandIn
from spoilt_hub import (
    COMMIT,
    CONFIG,
    CONTENT,
    GET_LARGE,
    LARGE,
    NAME,
    TREE,
    at,
    body,
    entry,
    header,
    refused,
    spoilt_hub,
    status,
    take,
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with spoilt_hub(tmp_path, monkeypatch) as state:
        yield state


def test_what_is_as_it_must_be_comes_through(hub: StandIn, tmp_path: Path) -> None:
    folder = take(hub, tmp_path / "cache")
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


@pytest.mark.parametrize(
    "etag",
    [
        '"../../../../site/zz.pth"',
        'W/"../zz"',
        '"/tmp/zz"',
        '"a/b"',
        '".."',
        '"a.b"',
        '"a b"',
        '"a\\b"',
        '""',
        "",
        f'"{"a" * 129}"',
        '"caf\xe9"',
        '"a"b"',
        None,
    ],
)
@pytest.mark.parametrize("name", ["ETag", "X-Linked-Etag"])
def test_a_name_of_a_file_is_only_a_name(
    hub: StandIn, tmp_path: Path, etag: str | None, name: str
) -> None:
    where = CONFIG if name == "ETag" or etag else at("model.safetensors", "HEAD")
    if not etag and name == "X-Linked-Etag":
        hub.storage = "https://cdn.example.com"  # where nobody is asked about it again
    assert "as the ETag of" in refused(hub, tmp_path, header(where, name, etag))


@pytest.mark.parametrize(
    "sha",
    [
        "../../../../x",
        "f" * 39,
        "f" * 41,
        "F" * 40,
        "g" * 40,
        "",
        None,
        7,
        ["f" * 40],
        "f" * 40 + "\n",
    ],
)
def test_a_commit_is_only_a_commit(hub: StandIn, tmp_path: Path, sha: object) -> None:
    answer = json.dumps({"id": NAME, "sha": sha, "siblings": []}).encode()
    assert "as a commit; use" in refused(hub, tmp_path, body(COMMIT, answer))
    if isinstance(sha, str) and sha.isprintable():
        said = refused(hub, tmp_path, header(CONFIG, "X-Repo-Commit", sha))
        assert "as the commit of 'config.json'" in said


def test_a_file_of_another_commit(hub: StandIn, tmp_path: Path) -> None:
    said = refused(hub, tmp_path, header(CONFIG, "X-Repo-Commit", "f" * 40))
    assert "as the commit of 'config.json'" in said
    assert "as the commit" in refused(hub, tmp_path, header(CONFIG, "X-Repo-Commit", None))


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "a/../../x.json",
        "..",
        "/etc/x.json",
        "//host/x.json",
        "a//x.json",
        "./x.json",
        "a/./x.json",
        "",
        "a/",
        "..\\x.json",
        "C:/x.json",
        "c:x.json",
        "x\0.json",
        "x\n.json",
        "\x1b[2Jx.json",
        "\u202ex.json",
        "a" * 300 + ".json",
        "\ud800.json",
        7,
        None,
        ["x.json"],
    ],
)
def test_a_path_of_a_list_stays_in_its_folder(hub: StandIn, tmp_path: Path, path: object) -> None:
    assert "which is no name of a file" in refused(hub, tmp_path, entry(path=path))
    said = refused(hub, tmp_path, entry(path=path, type="directory"))
    assert "which is no name of a file" in said


@pytest.mark.parametrize("value", ["../../x", "", None, 5, {"a": 1}, "f" * 63 + "/"])
def test_hashes_of_a_list_are_names_too(hub: StandIn, tmp_path: Path, value: object) -> None:
    """The library makes a file's name of the large one's, if it asks another storage for it."""
    assert "lists 'config.json'" in refused(hub, tmp_path, entry(oid=value))
    assert "lists 'model.safetensors'" in refused(hub, tmp_path, entry(lfs__oid=value))


@pytest.mark.parametrize("size", ["12", -1, 10**30, True, 1.5, None, [], "NaN"])
def test_sizes_of_a_list_are_numbers(hub: StandIn, tmp_path: Path, size: object) -> None:
    assert "lists 'config.json' with" in refused(hub, tmp_path, entry(size=size))
    assert "lists 'model.safetensors' with" in refused(hub, tmp_path, entry(lfs__size=size))


ELSEWHERE = [
    "http://other.example.com/x",
    "http://127.0.0.1:9/x",
    "https://127.0.0.1:9/x",
    "https://2130706433/x",
    "https://0x7f.1/x",
    "https://1.0x7f/x",
    "https://127.1/x",
    "https://[::1]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://localhost/x",
    "https://localhost./x",
    "https://router/x",
    "https:///x",
    "//127.0.0.1:9/x",
    "file:///etc/passwd",
    "ftp://example.com/x",
    "javascript:alert(1)",
    "data:,x",
    "http://[::1",
    "https://\x01/",
    "https://example.com:port/",
]


@pytest.mark.parametrize("where", ELSEWHERE)
def test_where_a_hub_may_not_send_us(tmp_path: Path, where: str) -> None:
    door = Door("http://127.0.0.1:8", NAME, tmp_path, FILES)
    with pytest.raises(CheckpointError, match=r"sent us on to .*, which is n"):
        door.follow(Asked("list"), "GET", f"{door.hub}/api", where)


@pytest.mark.parametrize(
    "where",
    [
        "/x",
        "?cursor=1",
        "http://127.0.0.1:8/x",
        "https://cas-bridge.xethub.hf.co/x?a=%27b%27&c='d'+e&f=~%7E#g",
        "https://cdn.example.com:8443/a b/\xe9",
        "https://b\xfccher.example.com/",
    ],
)
def test_where_a_hub_may_send_us(tmp_path: Path, where: str) -> None:
    """The address that is allowed is the one that will be gone to, letter by letter."""
    door = Door("http://127.0.0.1:8", NAME, tmp_path, FILES)
    url = door.follow(Asked("list"), "GET", f"{door.hub}/api", where)
    request = httpx.Client().build_request("GET", url)
    assert door.asked("GET", str(request.url)).kind == "list"


@pytest.mark.parametrize("asked", [COMMIT, TREE, LARGE, GET_LARGE], ids="ctal")
def test_every_answer_that_sends_on_is_looked_at(
    hub: StandIn, tmp_path: Path, asked: Callable[[Request], bool]
) -> None:
    where = "http://127.0.0.1:9/x"
    said = refused(hub, tmp_path, status(asked, 302, Location=where))
    assert f"sent us on to '{where}', which is neither the hub nor public and https" in said
    said = refused(hub, tmp_path, header(TREE, "Link", f'<{where}>; rel="next"'))
    assert f"sent us on to '{where}'" in said


@pytest.mark.parametrize("asked", [COMMIT, TREE, CONFIG, GET_LARGE], ids="ctal")
def test_a_ring_of_ways(hub: StandIn, tmp_path: Path, asked: Callable[[Request], bool]) -> None:
    def spoil(seen: Request, reply: Reply) -> None:
        if asked(seen):
            reply.status, reply.headers["Location"] = 307, seen.path

    said = refused(hub, tmp_path, spoil)
    assert "sent us on more than 10 times" in said or "TooManyRedirects" in said


def test_an_address_is_for_one_file(tmp_path: Path) -> None:
    """Or the bytes of one would be held to the promise of another, and kept under its name."""
    door, commit, cdn = (
        Door("http://127.0.0.1:8", NAME, tmp_path, FILES),
        "c" * 40,
        "https://cdn.x.y",
    )

    def about(file: str, etag: str, where: str) -> Asked:
        said = {"X-Linked-Etag": etag, "X-Linked-Size": "9", "X-Repo-Commit": commit}
        url = f"{door.hub}/{NAME}/resolve/{commit}/{file}"
        door.about(door.asked("HEAD", url), url, said | {"Location": f"{cdn}/{where}"})
        return door.asked("GET", f"{cdn}/{where}")

    one, twin, two = about("a", "e1", "1"), about("b", "e1", "1"), about("c", "e2", "2")
    assert one is twin and door.follow(one, "GET", f"{cdn}/1", "/3") == f"{cdn}/3"
    for mix_up in (
        lambda: about("d", "e2", "1"),
        lambda: door.follow(one, "GET", f"{cdn}/1", "/2"),
        lambda: door.follow(two, "GET", f"{cdn}/2", "/3"),
        lambda: door.follow(Asked("list"), "GET", f"{door.hub}/api", f"{cdn}/1"),
    ):
        with pytest.raises(CheckpointError, match="gave one address for"):
            mix_up()
