"""Finding a checkpoint: folders, and a hub that is a small server on this machine."""

import errno
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id

from diffusiongemma.checkpoint.fetch import Job, explain
from diffusiongemma.checkpoint.hub import find, looks_like_hub_id
from diffusiongemma.core.errors import CheckpointError, OptionError
from hub_stand_in import Reply, Request, StandIn, serve

NAME = "acme/tiny-gemma"
FILES = {
    "config.json": b'{"model_type": "diffusion_gemma"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": random.Random(0).randbytes(300_000),
    "pytorch_model.bin": b"a pickle",
    "old/optimizer.pt": b"a pickle",
    "README.md": b"words",
    "LICENSE": b"terms",
    "NOTICE.txt": b"names",
    "LICENSE.py": b"print()",
    "notes.md": b"more words",
}
NEEDED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
FETCHED = NEEDED | {"README.md", "LICENSE", "NOTICE.txt"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in holding one public model, and a client that knows no other hub, cache or login."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    with serve() as state:
        state.add(NAME, FILES)
        yield state
        huggingface_hub.close_session()


def fetch(hub: StandIn, model: str = NAME, **options: object) -> Path:
    return find(model, endpoint=hub.url, progress=False, **options)


def names(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


# Folders


def test_a_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path) == tmp_path
    assert find(str(tmp_path)) == tmp_path


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    assert find("~/m") == tmp_path / "m"


def test_an_existing_folder_wins_over_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    (Path(NAME) / "config.json").write_text("{}")
    assert find(NAME) == Path(NAME)


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; give the folder of"):
        find(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder that holds"):
        find(file)


@pytest.mark.parametrize("text", ["./acme/m", "../m", "~/no-such", "/no/such/place", "a/b/c"])
def test_a_path_that_is_not_there(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"no folder at .*; check the path"):
        find(text)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="no folder at acme/tiny-gemma"):
        find(Path(NAME))


@pytest.mark.parametrize("text", ["gemma", "", "a b", "gemma:latest"])
def test_neither_a_path_nor_an_id(text: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id; give a path"):
        find(text)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the folder .* has no revision 'v1'; omit revision"):
        find(tmp_path, revision="v1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("google/diffusiongemma-26B-A4B-it", True),
        ("a/b", True),
        ("a_1/b.c-d", True),
        ("gemma", False),
        ("./a", False),
        ("~/a", False),
        ("/a", False),
        ("a/b/c", False),
        ("a/b--c", False),
        ("a/b..c", False),
        ("a/b.git", False),
        ("-a/b", False),
        ("a/b\n", False),
        ("a/" + "b" * 97, False),
        ("a/é", False),
    ],
)
def test_what_a_hub_id_looks_like(text: str, expected: bool) -> None:
    assert looks_like_hub_id(text) is expected
    if expected:
        validate_repo_id(text)


# The hub


def test_downloads_what_is_needed_and_no_pickles(hub: StandIn) -> None:
    folder = fetch(hub)
    assert names(folder) == FETCHED
    assert all((folder / name).read_bytes() == FILES[name] for name in FETCHED)
    for name in ("pytorch_model.bin", "optimizer.pt", "LICENSE.py", "notes.md"):
        assert not hub.gets(name)


def test_the_second_time_fetches_nothing(hub: StandIn) -> None:
    first = fetch(hub)
    hub.requests.clear()
    assert fetch(hub) == first
    assert not [r for r in hub.requests if "/resolve/" in r.path]


def test_offline_finds_what_was_fetched(hub: StandIn) -> None:
    first = fetch(hub)
    hub.requests.clear()
    assert fetch(hub, offline=True) == first
    assert hub.requests == []


def test_a_dead_network_falls_back_on_the_cache(hub: StandIn) -> None:
    first = fetch(hub)
    assert find(NAME, endpoint="http://127.0.0.1:9", progress=False) == first


def test_a_cache_without_card_and_terms_opens(hub: StandIn) -> None:
    """As one that an earlier version, or another library, filled; they come when it is online."""
    first = fetch(hub)
    for name in FETCHED - NEEDED:
        (first / name).unlink()
    assert fetch(hub, offline=True) == first
    assert find(NAME, endpoint="http://127.0.0.1:9", progress=False) == first
    assert names(first) == NEEDED
    assert names(fetch(hub)) == FETCHED


def test_a_dead_network_and_a_part_of_the_files(hub: StandIn) -> None:
    (fetch(hub) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds only part of .*; load it once while online"):
        find(NAME, endpoint="http://127.0.0.1:9", progress=False)


def test_offline_with_an_empty_cache(hub: StandIn) -> None:
    with pytest.raises(CheckpointError, match=r"is not in .*; load it once while online"):
        fetch(hub, offline=True)
    assert hub.requests == []


def test_offline_with_a_part_of_the_files(hub: StandIn) -> None:
    (fetch(hub) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds only part of .*; load it once while online"):
        fetch(hub, offline=True)


def test_online_cannot_be_forced_against_the_environment(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OptionError, match="but HF_HUB_OFFLINE is set; unset it first"):
        fetch(hub, offline=False)
    with pytest.raises(CheckpointError, match="load it once while online"):
        fetch(hub)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: StandIn) -> None:
    old = hub.repos[NAME].refs["main"]
    hub.repos[NAME].refs["v1"] = old
    new = hub.add(NAME, FILES | {"config.json": b'{"newer": true}'})
    assert fetch(hub, revision=old).name == old
    assert fetch(hub, revision="v1").name == old
    assert fetch(hub, revision="main").name == new
    assert fetch(hub).name == new
    assert b"newer" in (fetch(hub) / "config.json").read_bytes()


@pytest.mark.parametrize("revision", ["v9", "f" * 40])
def test_a_revision_that_is_not_there(hub: StandIn, revision: str) -> None:
    with pytest.raises(CheckpointError, match=f"no revision '{revision}'; give a branch, a tag"):
        fetch(hub, revision=revision)


@pytest.mark.parametrize("token", [None, "hf_any"])
def test_a_model_that_is_not_there(hub: StandIn, token: str | None) -> None:
    with pytest.raises(CheckpointError, match="shows no 'acme/other'; check the name"):
        fetch(hub, "acme/other", token=token)


def test_a_repository_without_a_model(hub: StandIn) -> None:
    hub.add("acme/words", {"README.md": b"words"})
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        fetch(hub, "acme/words")


@pytest.mark.parametrize(
    ("gated", "said"), [(True, "is gated; accept its terms at"), (False, "shows no .* private")]
)
def test_a_locked_model_needs_its_token(hub: StandIn, gated: bool, said: str) -> None:
    hub.add("acme/locked", FILES, token="hf_right", gated=gated)
    with pytest.raises(CheckpointError, match=rf"{said}.*HF_TOKEN"):
        fetch(hub, "acme/locked")
    with pytest.raises(CheckpointError, match="refused the token for 'acme/locked'") as wrong:
        fetch(hub, "acme/locked", token="hf_wrong")
    assert "hf_wrong" not in str(wrong.value)
    assert names(fetch(hub, "acme/locked", token="hf_right")) == FETCHED


def test_the_token_of_the_login_is_used(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("acme/locked", FILES, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert names(fetch(hub, "acme/locked")) == FETCHED


def test_a_broken_download_goes_on_where_it_stopped(hub: StandIn) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    weights = random.Random(1).randbytes(2 * chunk + 5)
    hub.add(NAME, FILES | {"model.safetensors": weights})
    hub.cuts["model.safetensors"] = chunk + 1_234_567
    folder = fetch(hub)
    assert (folder / "model.safetensors").read_bytes() == weights
    first, second = (asked for asked in hub.gets("model.safetensors") if "large" in asked.path)
    assert (first.range, first.sent) == (None, chunk + 1_234_567)
    assert second.range == f"bytes={chunk}-"  # whole chunks are kept
    assert second.sent == len(weights) - chunk


def test_a_failed_download_keeps_finished_files(hub: StandIn, tmp_path: Path) -> None:
    place = tmp_path / "cache/models--acme--tiny-gemma/snapshots" / hub.repos[NAME].refs["main"]
    small = FETCHED - {"model.safetensors"}

    def spoil(asked: Request, reply: Reply) -> None:
        if asked.method == "GET" and "/large/" in asked.path:
            reply.body = bytes(len(reply.body))
            while not all((place / name).exists() for name in small) and not hub.closed.wait(0.01):
                pass

    hub.spoil = spoil
    with pytest.raises(CheckpointError, match=r"sent other bytes of 'model.safetensors'"):
        fetch(hub)
    hub.spoil = None
    assert names(fetch(hub)) == FETCHED
    assert {name: len(hub.gets(name)) for name in small} == dict.fromkeys(small, 1)
    assert len([asked for asked in hub.gets("model.safetensors") if "large" in asked.path]) == 2


def test_no_network(hub: StandIn) -> None:
    with pytest.raises(CheckpointError, match=r"ConnectError.*check the network, then run again"):
        find(NAME, endpoint="http://127.0.0.1:9", progress=False)


def test_a_hub_that_is_ill(hub: StandIn) -> None:
    hub.fail = 500
    with pytest.raises(CheckpointError, match=r"cannot fetch .*500.*check the network"):
        fetch(hub)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "no", "/c/x"), "cannot write /c/x; change its owner"),
        (OSError(errno.ENOSPC, "No space left"), "the disk of /c is full; free some space"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "the disk of /c is full; free some space"),
        (ValueError("a\x1b[2J\nb"), "cannot fetch 'a/b' from https://h .ValueError: a\ufffd.2J.; "),
    ],
)
def test_what_the_disk_says(error: Exception, said: str) -> None:
    job = Job("a/b", "main", None, "https://h", "/c")
    assert re.match(said, str(CheckpointError(explain(error, job))))


def test_a_cache_that_is_no_folder(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot fetch .* \(NotADirectoryError"):
        fetch(hub)


@pytest.mark.parametrize(
    "revision", ["../../x", "/etc", "a//b", "a\\b", "a b", "a\nb", "", "x" * 201]
)
def test_a_revision_is_a_name_of_git(hub: StandIn, revision: str) -> None:
    with pytest.raises(OptionError, match="is no name of a branch, a tag or a commit"):
        fetch(hub, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "file:///etc", "https://", "https://a b", "https://a:x", "https://a?b"],
)
def test_the_address_of_a_hub(hub: StandIn, endpoint: str) -> None:
    with pytest.raises(OptionError, match=r"address must be such as https://huggingface.co, got"):
        find(NAME, endpoint=endpoint)


def test_every_message_is_one_line(hub: StandIn) -> None:
    for call in (
        partial(fetch, hub, "acme/other"),
        partial(fetch, hub, revision="v9"),
        partial(fetch, hub, offline=True),
        partial(find, NAME, endpoint="http://127.0.0.1:9"),
    ):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_progress_is_drawn_unless_told_not_to(
    hub: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(hub)
    assert capfd.readouterr().err == ""
    hub.add(NAME, FILES | {"model.safetensors": bytes(500_000)})
    find(NAME, endpoint=hub.url)
    told = capfd.readouterr().err
    assert "fetching acme/tiny-gemma" in told and "100%" in told
    assert find(NAME, endpoint=hub.url) and capfd.readouterr().err == ""  # it was there


def test_the_switches_of_the_library(hub: StandIn, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE are read at import, hence a fresh process."""
    hub.add("acme/locked", FILES, token="hf_right")
    code = "from diffusiongemma.checkpoint.hub import find; print(find('acme/locked'))"
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_right"}

    def run(**more: str) -> str:
        environment = keep | {"PYTHONPATH": os.pathsep.join(sys.path)} | given | more
        return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)

    online = run()
    assert online.startswith(str(tmp_path / "home"))
    hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == online
    assert hub.requests == []
