"""A checkpoint's folder -> a repository on the Hugging Face hub, in one commit.

Knows what to upload, what of an older checkpoint there must go, and what the hub's refusals mean;
`huggingface_hub` does the sending. Does not know what is inside the files.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusiongemma.checkpoint.fetch import TOKEN_HELP
from diffusiongemma.checkpoint.folder import CARD
from diffusiongemma.checkpoint.hub import looks_like_hub_id
from diffusiongemma.core.errors import CheckpointError, OptionError
from diffusiongemma.core.letters import reason
from diffusiongemma.core.log import warn_once

_TOKEN_HELP = f"{TOKEN_HELP}, with the right to write"
# What readers would take for weights of this checkpoint; anything else there is left alone.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload all files of a folder; the repository has the whole of them after it, or nothing new.

    Weights of an older checkpoint are removed in the same commit. A card that the repository has
    stays.

    Args:
        folder: the files.
        repo_id: `organisation/name`; made if it does not exist.
        private: who sees it. A new repository is private unless this is False; one that exists
            stays as it is, and must be as is said here.
        token: with the right to write; by default the one that the hub's tools have stored.
        revision: a branch, made if it does not exist; the main one if not given.
        message: of the commit.
        endpoint: the address of a hub; by default that of the library.

    Returns:
        the address of the commit.

    Raises:
        CheckpointError: the hub cannot be reached or refuses.
        OptionError: an option that has no meaning here.
    """
    if not isinstance(repo_id, str) or not looks_like_hub_id(repo_id):
        raise OptionError(f"{repo_id!r} is no repository; give organisation/name")
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise OptionError("nothing can be uploaded while HF_HUB_OFFLINE is set; unset it first")
    hub = HfApi(endpoint=endpoint, token=token, library_name="diffusiongemma")
    with _explained(repo_id, revision, hub.endpoint):
        _make(hub, repo_id, private)
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        there = hub.model_info(repo_id, revision=revision)
        before = {sibling.rfilename for sibling in there.siblings or ()}
        done = hub.create_commit(
            repo_id,
            _changes(folder, repo_id, before),
            commit_message=message or "Upload a DiffusionGemma checkpoint",
            revision=revision,
            parent_commit=there.sha,
        )
        return str(done.commit_url)


def _changes(folder: Path, repo_id: str, before: set[str]) -> list[Any]:
    """What a commit has to do to a repository that holds some files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = (file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix() for file in files}
    if CARD in before & names:
        warn_once(f"{repo_id} has a card, which stays; change it there")
        names.remove(CARD)
    stale = {name for name in before - names if _WEIGHTS.fullmatch(name)}
    return [
        *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
        *(CommitOperationDelete(name) for name in sorted(stale)),
    ]


def _make(hub: Any, repo_id: str, private: bool | None) -> None:
    """Make a repository, or see that the one that exists is as was asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        seen = bool(hub.model_info(repo_id).private)
    except RepositoryNotFoundError:
        hub.create_repo(repo_id, private=private is not False, exist_ok=True)
        return
    if private is not None and private != seen:
        raise OptionError(
            f"'{repo_id}' exists and is {'private' if seen else 'public'}; leave private out, or "
            "change it in the repository's settings"
        )


@contextmanager
def _explained(repo_id: str, revision: str | None, hub: str) -> Iterator[None]:
    """Every error of the library as one sentence of ours."""
    try:
        yield
    except (CheckpointError, OptionError):
        raise
    except Exception as error:  # a server's odd answer raises anything there
        raise CheckpointError(_explain(error, repo_id, revision, hub)) from error


def _explain(error: Exception, repo_id: str, revision: str | None, hub: str) -> str:
    from huggingface_hub import errors

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library wraps what stopped the upload of a large file
    answer = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = None if answer is None else answer.status_code
    where = f"'{repo_id}' on {hub}"
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"{where} takes no upload without a valid token; {_TOKEN_HELP}"
    if status == 403:
        return f"the token may not write to {where}; {_TOKEN_HELP}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{where} cannot be made or seen; check the name, and {_TOKEN_HELP}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has no branch '{revision}'; name a branch, not a tag or a commit"
    if status in (409, 412):
        return f"{where} was changed by somebody else meanwhile; look at it, then run again"
    return f"cannot upload to {where} ({reason(error)}); check the network, then run again"
