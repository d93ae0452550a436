"""From the name of a model to a folder on this disk: a folder as it is, or files from the hub.

Knows names of models and the Hugging Face hub's cache; `fetch` knows how files come there. Does not
know what is inside the files. The library's own switches keep their meaning: HF_ENDPOINT, HF_HOME,
HF_TOKEN, HF_HUB_OFFLINE.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from diffusiongemma.checkpoint.fetch import Job, fetch, snapshot
from diffusiongemma.core.atomic import left_whole
from diffusiongemma.core.errors import CheckpointError, OptionError

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REVISION = re.compile(r"[^\x00-\x20~^:?*\[\\\x7f]{1,200}")
_HUB_ID = re.compile(rf"{_PART}/{_PART}")


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` could name a repository on the hub: `organisation/name`."""
    barred = "--" in text or ".." in text or text.endswith(".git")
    return not barred and _HUB_ID.fullmatch(text) is not None


def find(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
    endpoint: str | None = None,
) -> Path:
    """The folder that holds a checkpoint, fetched first when it is named by a hub id.

    A download that breaks off is taken up where it stopped; one that is killed starts over with
    the file it was in, and keeps the files before it. A hub that sends less than 64 KB in a minute
    while it is waited for is given up, and so is one that answers what no hub should, or other
    bytes than it promised. The token goes to the hub alone.

    Args:
        model: a folder, or a hub id such as `google/diffusiongemma-26B-A4B-it`. An existing folder
            wins over a repository of the same name.
        revision: branch, tag or commit hash on the hub; None for the main branch.
        token: a hub token, for gated and private models; None for the one of this machine's login.
        offline: True to use only what the cache holds; None for what HF_HUB_OFFLINE says.
        progress: whether to draw bars while files arrive.
        endpoint: the address of a mirror of the hub; None for what HF_ENDPOINT says.

    Raises:
        CheckpointError: there is no such folder or repository, or it could not be fetched.
        OptionError: an option that has no meaning here.
    """
    text = os.fspath(model)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"'{text}' names the home of an unknown user; check it") from error
    if text and path.exists():
        if revision is not None:
            raise OptionError(f"the folder {path} has no revision '{revision}'; omit revision")
        return _checked(path)
    if text and (left := left_whole(path)) is not None:
        raise CheckpointError(
            f"no folder at {path}, but a save that was cut off left it whole in {left}; move it "
            "to its place"
        )
    if looks_like_hub_id(text) and isinstance(model, str):
        return _fetch(text, revision, token, offline, progress, endpoint)
    if isinstance(model, str) and not text.startswith((".", "~")) and os.sep not in text:
        raise CheckpointError(
            f"'{text}' is neither a folder nor a hub id; give a path,"
            " or organisation/name such as google/diffusiongemma-26B-A4B-it"
        )
    raise CheckpointError(f"no folder at {path}; check the path, or give a hub id")


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder of a checkpoint")
    return folder


def _fetch(
    model: str,
    revision: str | None,
    token: str | None,
    offline: bool | None,
    progress: bool,
    endpoint: str | None,
) -> Path:
    # Imported late: it is half a second that `--help` and local folders need not pay.
    from huggingface_hub import constants, get_token

    if offline is False and constants.HF_HUB_OFFLINE:
        raise OptionError("offline=False was given, but HF_HUB_OFFLINE is set; unset it first")
    if revision is not None and not _is_revision(revision):
        raise OptionError(f"revision {revision!r} is no name of a branch, a tag or a commit")
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = get_token()
    job = Job(
        model=model,
        revision=revision or constants.DEFAULT_REVISION,
        token=token,
        hub=_address(endpoint or constants.ENDPOINT),
        cache=str(Path(constants.HF_HUB_CACHE).expanduser().resolve()),
    )
    if offline or constants.HF_HUB_OFFLINE:
        folder = Path(snapshot(job, local=True))
    else:
        folder = Path(fetch(job, progress=progress))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{job.hub}/{model} has no config.json; give a model in the hub's layout"
        )
    _check_inside(folder, job)
    return folder


def _is_revision(text: str) -> bool:
    """Whether git would take it for a name; it becomes a path in the cache too."""
    parts = text.split("/")
    return _REVISION.fullmatch(text) is not None and not any(p in ("", ".", "..") for p in parts)


def _address(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        plain = False
    if not plain or not endpoint.isprintable() or set(endpoint) & set(" ?#"):
        raise OptionError(
            f"the hub's address must be such as https://huggingface.co, got {endpoint!r}; check"
            " endpoint and HF_ENDPOINT"
        )
    return endpoint.rstrip("/")


def _check_inside(folder: Path, job: Job) -> None:
    """Everything of a snapshot is a file of the model's own, wherever links in it lead."""
    places = [os.path.realpath(place) for place in (job.cache, job.storage)]
    for path in (folder, *folder.rglob("*")):
        real = os.path.realpath(path)
        inside = any(os.path.commonpath((place, real)) == place for place in places)
        linked = path.is_dir() and path.is_symlink()
        if linked or not inside or not (path.is_dir() or path.is_file()):
            raise CheckpointError(
                f"{path} in the cache is no file of '{job.model}', it leads to {real}; remove"
                f" {job.storage} and fetch it again"
            )
