"""Uploading, to a hub that is a small server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

import diffusiongemma as dg
from diffusiongemma.checkpoint.push import push
from diffusiongemma.core.errors import CheckpointError, OptionError
from hub_uploads import READS, TOKEN, Uploads, serve

# The library's own way to its transport.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/mine"
FILES = {
    "config.json": b'{"model_type": "diffusion_gemma"}',
    "model.safetensors": bytes(range(256)) * 100,
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "README.md": b"---\nlicense: mit\n---\n# mine\n",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    """A hub, and a client that knows no other one and no login."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is a world of its own
    huggingface_hub.close_session()
    disable_progress_bars()
    with serve() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        yield state
        huggingface_hub.close_session()
    enable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return made


def test_a_new_repository_is_private_and_whole_in_one_commit(hub: Uploads, folder: Path) -> None:
    url = push(folder, NAME, token=TOKEN)
    repo = hub.repos[NAME]
    assert repo.private and repo.files() == FILES | {".gitattributes": b"*.safetensors filter=lfs"}
    assert url == f"{hub.url}/{NAME}/commit/{repo.branches['main'][-1]}"
    assert len(repo.commits) == 2 and hub.summaries == ["Upload a DiffusionGemma checkpoint"]
    push(folder, "me/open", token=TOKEN, private=False, message="Mine")
    assert not hub.repos["me/open"].private and hub.summaries[-1] == "Mine"


def test_weights_of_an_older_checkpoint_go_and_all_else_stays(hub: Uploads, folder: Path) -> None:
    stays = {
        ".gitattributes": b"x",
        "notes.txt": b"y",
        "onnx/model.safetensors": b"of another kind",
        "adapter_model.safetensors": b"too",
        "model-of-mine.safetensors": b"too",
    }
    goes = {
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
        "model.safetensors.index.json": b"{}",
    }
    hub.add(NAME, stays | goes | {"model.safetensors": b"old", "config.json": b"old"})
    push(folder, NAME, token=TOKEN)
    assert hub.repos[NAME].files() == stays | FILES
    assert len(hub.repos[NAME].commits) == 2  # never a mixture


def test_a_card_that_is_there_stays(
    hub: Uploads, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("me/cardy", {"README.md": b"written there"})
    push(folder, "me/cardy", token=TOKEN)
    assert hub.repos["me/cardy"].files() == FILES | {"README.md": b"written there"}
    assert "me/cardy has a card, which stays; change it there" in caplog.text


def test_a_branch_is_made(hub: Uploads, folder: Path) -> None:
    hub.add(NAME, {"a": b"1"})
    for _ in range(2):
        push(folder, NAME, token=TOKEN, revision="trial")
    assert hub.repos[NAME].files() == {"a": b"1"}
    assert hub.repos[NAME].files("trial") == {"a": b"1"} | FILES


def test_who_may_see_a_repository_that_exists_is_not_changed(hub: Uploads, folder: Path) -> None:
    hub.add("me/open", {"a": b"1"})
    hub.add("me/shut", {"a": b"1"}, private=True)
    for name, private in (("me/open", None), ("me/open", False), ("me/shut", True)):
        push(folder, name, token=TOKEN, private=private)
    with pytest.raises(OptionError, match="'me/open' exists and is public; leave private out, or"):
        push(folder, "me/open", token=TOKEN, private=True)
    with pytest.raises(OptionError, match="'me/shut' exists and is private; leave private out"):
        push(folder, "me/shut", token=TOKEN, private=False)
    assert not hub.repos["me/open"].private and hub.repos["me/shut"].private


def test_a_checkpoint_is_pushed_and_opens_again(
    hub: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gemma = dg.load()
    url = gemma.push_to_hub("me/small", private=False)
    assert url.startswith(f"{hub.url}/me/small/commit/")
    back = tmp_path / "back"
    back.mkdir()
    for name, content in hub.repos["me/small"].files().items():
        (back / name).write_bytes(content)
    again = dg.load(back)
    assert again.generate("Sort: 9 1 5", seed=1).text == gemma.generate("Sort: 9 1 5", seed=1).text
    assert {path.name for path in tmp_path.iterdir()} == {"back"}  # nothing is left


def test_its_card_names_the_repository(hub: Uploads, tmp_path: Path) -> None:
    source = tmp_path / "source"
    dg.load().save(source)
    (source / "README.md").unlink()
    dg.load(source).push_to_hub(NAME, token=TOKEN)
    card = hub.repos[NAME].files()["README.md"].decode()
    assert f'dg.load("{NAME}")' in card and card.startswith("---\nlibrary_name: diffusiongemma\n")


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x", "a/b\n", "", "me/a--b"])
def test_what_is_no_repository(hub: Uploads, folder: Path, name: str) -> None:
    with pytest.raises(OptionError, match="is no repository; give organisation/name"):
        push(folder, name)
    assert not hub.asked


def test_offline(hub: Uploads, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OptionError, match="while HF_HUB_OFFLINE is set; unset it first"):
        push(folder, NAME, token=TOKEN)
    assert not hub.asked


def refused(folder: Path, message: str, **options: object) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        push(folder, NAME, **options)
    said = str(caught.value)
    assert "\n" not in said and TOKEN not in said and len(said) < 600


def test_tokens(hub: Uploads, folder: Path) -> None:
    refused(folder, "takes no upload without a valid token; pass token=.* the right to write")
    refused(folder, "takes no upload without a valid token", token="hf_wrong")
    refused(folder, "the token may not write to 'me/mine' on http", token=READS)
    hub.add(NAME, {"a": b"1"})
    refused(folder, "takes no upload without a valid token")
    refused(folder, "the token may not write to", token=READS)
    hub.repos[NAME].private = True
    refused(folder, "takes no upload without a valid token")
    assert hub.repos[NAME].files() == {"a": b"1"}


def test_somebody_else_at_the_same_time(
    hub: Uploads, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, {"a": b"1"})
    real = huggingface_hub.HfApi.model_info

    def model_info(self, *args, **options):
        found = real(self, *args, **options)
        hub.repos[NAME].add("main", {"a": b"2"})
        return found

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    refused(folder, "was changed by somebody else meanwhile; look at it, then run", token=TOKEN)
    assert hub.repos[NAME].files() == {"a": b"2"}


@pytest.mark.parametrize(
    ("door", "status", "body"),
    [
        ("preupload", 200, b"no JSON\r\n\x1b[2J"),
        ("preupload", 200, b"[]"),
        ("preupload", 200, b'{"files": 3}'),
        ("preupload", 413, b""),
        ("commit", 200, b"[]"),
        ("commit", 200, b"\xff"),
        ("commit", 500, b"\x1b[2J"),
        ("commit", 302, b""),
    ],
)
def test_odd_answers(hub: Uploads, folder: Path, door: str, status: int, body: bytes) -> None:
    hub.add(NAME, {"a": b"1"})
    hub.answers[f"/api/models/{NAME}/{door}/main"] = (status, body)
    refused(folder, "cannot upload to 'me/mine' on http.*; check the network, then", token=TOKEN)
    assert hub.repos[NAME].files() == {"a": b"1"}


def test_nobody_there(hub: Uploads, folder: Path, tmp_path: Path) -> None:
    refused(folder, "cannot upload to .*; check the network", endpoint="http://127.0.0.1:9")


def test_nothing_of_the_library_is_imported_before_it_is_needed() -> None:
    code = "import sys, diffusiongemma.checkpoint.push; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
