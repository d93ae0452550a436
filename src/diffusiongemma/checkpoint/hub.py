"""From the name of a model to a folder on this disk: a folder as it is, or files from the hub.

Knows the Hugging Face hub and its cache. Does not know what is inside the files. Only safetensors,
JSON and chat templates are fetched: a pickle can run code when it is opened, so none is ever asked
for. The library's own switches keep their meaning: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import errno
import os
import re
from pathlib import Path
from typing import Any

from diffusiongemma.core.atomic import left_whole
from diffusiongemma.core.errors import CheckpointError, OptionError

FILES = ("*.safetensors", "*.json", "*.jinja")
TOKEN_HELP = "pass token=..., set HF_TOKEN, or run `hf auth login`"

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
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
    the file it was in, and keeps the files before it.

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
    import huggingface_hub
    from huggingface_hub import constants, errors

    if offline is False and constants.HF_HUB_OFFLINE:
        raise OptionError("offline=False was given, but HF_HUB_OFFLINE is set; unset it first")
    # The transport below the library has changed its name twice; its base error is this one's base.
    transport_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    hub = (endpoint or constants.ENDPOINT).rstrip("/")
    bars: dict[str, Any] = {} if progress else {"tqdm_class": _no_bars()}
    try:
        folder = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            token=token,
            local_files_only=bool(offline),
            endpoint=endpoint,
            allow_patterns=list(FILES),
            **bars,
        )
    except (OSError, ValueError, transport_error) as error:
        raise CheckpointError(_explain(error, model, revision or "main", hub)) from error
    if not Path(folder, "config.json").is_file():
        raise CheckpointError(f"{hub}/{model} has no config.json; give a model in the hub's layout")
    return Path(folder)


def _explain(error: BaseException, model: str, revision: str, hub: str) -> str:
    """One sentence for what the library raised: what happened, and what to do."""
    from huggingface_hub import constants, errors

    where = constants.HF_HUB_CACHE
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return f"'{model}' is gated; accept its terms at {hub}/{model}, then {TOKEN_HELP}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} shows no '{model}'; check the name, or, if it is private, {TOKEN_HELP}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{model}' has no revision '{revision}'; give a branch, a tag or a full commit hash"
    if status in (401, 403):
        return f"{hub} refused the token for '{model}' ({status}); {TOKEN_HELP}"
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"the cache holds only part of '{model}' at '{revision}'; load it once while online"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ is None or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return f"'{model}' at '{revision}' is not in {where}; load it once while online"
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {where} is full; free some space, or set HF_HOME to a larger disk"
    if isinstance(error, PermissionError):
        return f"cannot write {error.filename}; change its owner, or set HF_HOME to another folder"
    reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". :")
    return f"cannot fetch '{model}' from {hub} ({reason}); check the network, then run again"


def _no_bars() -> type:
    from tqdm import tqdm

    def start(self: tqdm, *args: Any, **options: Any) -> None:
        tqdm.__init__(self, *args, **(options | {"disable": True}))

    return type("NoBars", (tqdm,), {"__init__": start})
