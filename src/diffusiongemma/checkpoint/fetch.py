"""The files of a model on a hub -> a folder of the hub's cache, by a process of its own.

`huggingface_hub` has one session for all of a process and threads that nobody can stop. Here both
belong to a process that does nothing else: what the caller does with the library stays as it was,
a hub that is silent or drips is given up, and an interrupt ends it all at once.

The two speak in lines of JSON: a job goes in, bytes that came and at last a folder or an error come
out. The job's pipe stays open; its end means that nobody waits any more.
"""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import first_line, reason

if TYPE_CHECKING:
    from diffusiongemma.checkpoint.door import Watch

NEEDED = ("*.safetensors", "*.json", "*.jinja")
"""What a checkpoint is opened from: a pickle can run code then, so none is ever asked for."""
FILES = (
    *NEEDED, "README.md", "README.source.md",
    *(f"{name}{end}" for name in ("LICENSE", "NOTICE") for end in ("", ".md", ".txt")),
)  # fmt: skip
"""What is fetched: cards and terms too, which a copy keeps."""

PATIENCE_S = 60.0
"""How long a hub may take for every `LEAST` bytes while it is waited for."""
LEAST = 1 << 16

TOKEN_HELP = "pass token=..., set HF_TOKEN, or run `hf auth login`"

_BEGIN = (
    "import json, sys; told = json.loads(sys.stdin.readline()); sys.path[:] = told.pop('path');"
    " from diffusiongemma.checkpoint import fetch; fetch.serve(told)"
)
# Xet storage has a transport of its own, which no door of ours looks at; the hub serves all files
# without it too. Bars are drawn by the one who waits.
_SWITCHES = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to fetch, and where to.

    Attributes:
        model: an id on the hub.
        revision: branch, tag or commit.
        token: for the hub alone; None for none.
        hub: its address.
        cache: the folder of all models.
    """

    model: str
    revision: str
    token: str | None = dataclasses.field(repr=False)
    hub: str
    cache: str

    @property
    def storage(self) -> Path:
        """The model's folder in the cache."""
        return Path(self.cache, "--".join(("models", *self.model.split("/"))))


def snapshot(job: Job, *, local: bool) -> str:
    """The folder of a revision, by the library.

    Args:
        job: what to fetch.
        local: use only what the cache holds; without it, files are fetched in this very process.

    Raises:
        CheckpointError: for whatever reason it is not there.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.snapshot_download(
            job.model,
            revision=job.revision,
            token=job.token or False,
            local_files_only=local,
            endpoint=job.hub,
            cache_dir=job.cache,
            allow_patterns=list(NEEDED if local else FILES),
        )
    except errors.IncompleteSnapshotError as error:
        if not local:  # the hub is out of reach, and what the cache lacks may not be needed
            return snapshot(job, local=True)
        raise CheckpointError(explain(error, job)) from error
    except Exception as error:  # the answers of strangers have no end of ways to be odd
        raise CheckpointError(explain(error, job)) from error


def fetch(job: Job, *, progress: bool) -> str:
    """The folder of a revision, by a process that is started for it.

    Args:
        job: what to fetch.
        progress: draw a bar on standard error while files arrive.

    Raises:
        CheckpointError: it could not be fetched.
    """
    told = dataclasses.asdict(job) | {"path": [str(place) for place in sys.path]}
    told |= {"patience": PATIENCE_S}
    with tempfile.TemporaryFile() as aside:
        child = subprocess.Popen(
            [os.fsdecode(spawn.get_executable()), "-I", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=aside,
            env=os.environ | _SWITCHES,
            text=True,
            encoding="utf-8",
        )
        try:
            assert child.stdin is not None and child.stdout is not None
            with suppress(BrokenPipeError):
                child.stdin.write(f"{json.dumps(told)}\n")
                child.stdin.flush()
            last = _listen(child.stdout, job, progress)
        finally:
            _end(child)
        if "folder" in last:
            return last["folder"]
        aside.seek(0)
        lines = [line for line in aside.read().decode(errors="replace").splitlines() if line]
    died = f"'{job.model}' was not fetched: the process for it ended with {child.returncode}"
    raise CheckpointError(
        last.get("error") or f"{died} ({first_line(''.join(lines[-1:]))}); run again"
    )


def _listen(lines: Iterable[str], job: Job, progress: bool) -> dict[str, str]:
    """What a child says last; how far it is becomes a bar."""
    from tqdm import tqdm

    bar: tqdm | None = None
    try:
        for line in lines:
            said = json.loads(line)
            if "came" not in said:
                return said
            if progress and bar is None:
                bar = tqdm(desc=f"fetching {job.model}", unit="B", unit_scale=True, leave=False)
            if bar is not None:
                bar.total, bar.n = max(said["promised"], said["came"]), said["came"]
                bar.refresh()
    finally:
        if bar is not None:
            bar.close()
    return {}


def _end(child: subprocess.Popen[str]) -> None:
    """Leave no process behind, and no pipe."""
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


# In the process that is started


class Patience:
    """How long a hub has been waited for since it last sent `LEAST` bytes.

    Time in which nothing is asked does not count: another may be fetching the same file.

    Args:
        limit: seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._waited, self._mark = limit, 0.0, 0

    def over(self, watch: "Watch", passed: float) -> bool:
        """Whether it is at an end, after some seconds more."""
        if watch.came - self._mark >= LEAST:
            self._waited, self._mark = 0.0, watch.came
        self._waited += passed if watch.open else 0.0
        return self._waited > self._limit


def serve(told: dict[str, Any]) -> NoReturn:
    """Do one job and end the process."""
    import huggingface_hub

    from diffusiongemma.checkpoint.client import Client
    from diffusiongemma.checkpoint.door import Door

    patience = told.pop("patience")
    job = Job(**told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the one who waits
    door = Door(job.hub, job.model, job.storage, FILES)
    report = _Report(job, door.watch)
    for watcher in (report.attend, lambda: report.look(patience)):
        threading.Thread(target=watcher, daemon=True).start()
    huggingface_hub.set_client_factory(lambda: Client(door))
    try:
        folder = snapshot(job, local=False)
    except CheckpointError as error:
        report.last(error=door.watch.refusal or str(error))
    report.last(**{"error": door.watch.refusal} if door.watch.refusal else {"folder": folder})


class _Report:
    """What the one who waits is told."""

    def __init__(self, job: Job, watch: "Watch") -> None:
        self._job, self._watch, self._told = job, watch, 0
        self._lock = threading.Lock()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else may speak there

    def last(self, **said: str) -> NoReturn:
        """Say it, and end the process with all of its threads."""
        self._so_far()
        self._lock.acquire()  # for good
        with suppress(OSError):
            self._write(said)
        self._sweep()
        os._exit(0)

    def attend(self) -> None:
        """End the process when nobody waits any more."""
        sys.stdin.read()
        self.last()

    def look(self, patience: float) -> None:
        """Tell how far it is, and give a hub up that refuses, is silent or drips."""
        tick, waited = min(0.2, patience / 10), Patience(patience)
        while True:
            time.sleep(tick)
            if self._watch.refusal is not None:
                self.last(error=self._watch.refusal)
            if waited.over(self._watch, tick):
                little = f"sent less than {LEAST // 1024} KB in {patience:g} seconds"
                self.last(
                    error=f"'{self._job.model}' was not fetched: {self._job.hub} {little};"
                    " check the network, then run again"
                )
            self._so_far()

    def _so_far(self) -> None:
        came, promised = self._watch.came, self._watch.promised
        with self._lock, suppress(OSError):
            if promised and came != self._told:
                self._told = came
                self._write({"came": came, "promised": promised})

    def _write(self, said: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(said) + "\n")
        self._out.flush()

    def _sweep(self) -> None:
        """Remove what this process was about to write: the files that it has open."""
        ours = set()
        for number in range(3, 256):
            with suppress(OSError):
                about = os.fstat(number)
                ours.add((about.st_dev, about.st_ino))
        for path in self._job.storage.glob("blobs/*.incomplete"):
            with suppress(OSError):
                about = path.lstat()
                if (about.st_dev, about.st_ino) in ours:
                    path.unlink()


def explain(error: BaseException, job: Job) -> str:
    """One sentence for what the library raised: what happened, and what to do."""
    from huggingface_hub import errors

    model, revision, hub = job.model, job.revision, job.hub
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, CheckpointError):
        return str(error)
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
            return f"'{model}' at '{revision}' is not in {job.cache}; load it once while online"
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {job.cache} is full; free some space, or set HF_HOME to a larger disk"
    if isinstance(error, PermissionError):
        return f"cannot write {error.filename}; change its owner, or set HF_HOME to another folder"
    return f"cannot fetch '{model}' from {hub} ({reason(error)}); check the network, then run again"
