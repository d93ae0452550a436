"""What a hub may answer: all that is otherwise is refused.

A hub, a mirror of it, or whoever sits between may answer anything, and `huggingface_hub` makes
names of files from an answer's words. So nothing goes on to it as it came: `client` hands it a
status, a few checked headers, lists that are made anew here, and the bytes that were promised.

Answers come from the hub that was named, and from https addresses that it sends us on to. Addresses
are read by the transport that will go to them, for two readers may differ.
"""

import hashlib
import importlib
import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn, TypeGuard
from urllib.parse import unquote

from huggingface_hub import errors

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief

# The transport below the library has changed its name between majors; its errors are this one's.
httpx: Any = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0])

SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9A-Za-z_-]{1,128}")  # an ETag becomes the name of a file in the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")  # and this one that of a folder
_SIZE = re.compile(r"[0-9]{1,15}")
_DRIVE = re.compile(r"[A-Za-z]:")
# A number or a bare name is a machine of the network around us, which a hub has no say in.
_PUBLIC = re.compile(r"(?:[^.:]+\.)+(?!(?:0x[0-9a-f]*|[0-9]+)$)[^.:]+")
_LISTS = 64 << 20  # bytes that all lists of files together may have
_PARTS = 256  # that they may come in


@dataclass
class Watch:
    """How much is waited for, and how much came; `fetch` looks at it from another thread.

    Attributes:
        open: requests whose answers have not ended.
        came: bytes of answers.
        promised: bytes of the files that are still to come.
        refusal: why the hub is given up, once it is.
    """

    open: int = 0
    came: int = 0
    promised: int = 0
    refusal: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def waits(self, requests: int) -> None:
        """Count requests that begin, or end if they are negative."""
        with self.lock:
            self.open += requests

    def got(self, count: int) -> None:
        """Count bytes."""
        with self.lock:
            self.came += count


@dataclass
class Asked:
    """What a request is for: a `commit`, a `list` of files, `about` a file, or its `bytes`."""

    kind: str
    commit: str = ""
    file: str = ""

    def what(self) -> tuple[object, ...]:
        """What it comes to; two files with the same bytes may have one address."""
        return self.kind, self.commit


@dataclass
class Promise(Asked):
    """What the hub said of a file before it sent it, how much came, how often it began anew."""

    etag: str = ""
    size: int = 0
    came: int = 0
    begun: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def what(self) -> tuple[object, ...]:
        return self.kind, self.etag, self.size


@dataclass
class Door:
    """What is known of a hub while a model is fetched from it.

    Args:
        hub: its address, without a slash at the end.
        model: the model's id there.
        storage: the model's folder in the cache.
        patterns: names of the files that are wanted.
    """

    hub: str
    model: str
    storage: Path
    patterns: tuple[str, ...]
    watch: Watch = field(default_factory=Watch)
    known: dict[tuple[str, str], Asked] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    listed: int = 0
    parts: int = 0

    def refuse(self, what: str) -> NoReturn:
        """Give the hub up.

        Args:
            what: follows the hub's address in the sentence.
        """
        self.watch.refusal = self.watch.refusal or (
            f"'{self.model}' was not fetched: {self.hub} {what}; use a hub that you trust, or"
            " offline=True for what the cache holds"
        )
        raise CheckpointError(self.watch.refusal)

    def asked(self, method: str, url: str) -> Asked:
        """What a request is for.

        Raises:
            CheckpointError: something else; the library has questions that it can do without.
        """
        if (method, url) in self.known:
            return self.known[method, url]
        api, files = f"{self.hub}/api/models/{self.model}/", f"{self.hub}/{self.model}/resolve/"
        if method == "GET" and url.startswith(f"{api}revision/"):
            return Asked("commit")
        if method == "GET" and url.startswith(f"{api}tree/"):
            return Asked("list")
        if method == "HEAD" and url.startswith(files):
            commit, _, file = url.removeprefix(files).partition("?")[0].partition("/")
            return Asked("about", commit, unquote(file))
        raise CheckpointError(f"{method} {brief(url)} is no part of fetching '{self.model}'")

    def at_hub(self, url: str) -> bool:
        """Whether an address belongs to the hub that was named: only then the token goes along."""
        return _origin(url) == _origin(self.hub)

    def follow(self, asked: Asked, method: str, source: str, where: str) -> str:
        """The address that an answer leads to, if one may go there."""
        try:
            url = str(httpx.URL(source).join(where))
            scheme, host, _ = _origin(url)
        except Exception:  # of several kinds, by version
            self.refuse(f"sent us on to {brief(where)}, which is no address")
        if not (self.at_hub(url) or (scheme == "https" and _PUBLIC.fullmatch(host))):
            self.refuse(
                f"sent us on to {brief(url)}, which is neither the hub nor public and https"
            )
        self._know(method, url, asked)
        return url

    def commit(self, text: bytes) -> bytes:
        """The answer about a revision, made anew."""
        said = self._json(text)
        sha = said.get("sha") if isinstance(said, dict) else None
        if not _fits(sha, _COMMIT):
            self.refuse(f"gave {brief(sha)} as a commit")
        return json.dumps({"id": self.model, "sha": sha}).encode()

    def listing(self, text: bytes) -> bytes:
        """A list of files, made anew."""
        said = self._json(text)
        self.parts += 1
        if self.parts > _PARTS:
            self.refuse(f"gave lists of files in over {_PARTS} parts")
        if not isinstance(said, list) or not all(isinstance(entry, dict) for entry in said):
            self.refuse(f"gave {brief(said)} as a list of files")
        entries = [self._entry(entry) for entry in said]
        place = next(one for one in (self.storage, *self.storage.parents) if one.exists())
        free, needed = shutil.disk_usage(place).free, self.watch.promised
        if needed > free:
            raise CheckpointError(
                f"'{self.model}' needs {needed / 1e9:,.1f} GB more, but the disk of {place} has "
                f"{free / 1e9:,.1f} GB free; free some space, or set HF_HOME to a larger disk"
            )
        return json.dumps(entries).encode()

    def count_list(self, count: int) -> None:
        """Count bytes of lists, which have an end."""
        self.listed += count
        if self.listed > _LISTS:
            self.refuse(f"gave lists of files of over {_LISTS:,} bytes")

    def _json(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            self.refuse(f"gave an answer that is no JSON: {brief(text[:60])}")

    def _entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """One line of a list of files."""
        file, oid = self._path(entry.get("path")), entry.get("oid")
        if entry.get("type") != "file":
            return {"type": "directory", "path": file, "oid": oid if _fits(oid, _NAME) else ""}
        large = entry.get("lfs")  # the hash and the size of a large file stand apart
        if large is not None:
            self._blob(file, large if isinstance(large, dict) else {}, SHA256)
        self._blob(file, entry, _NAME)
        made: dict[str, Any] = {"type": "file"} | {
            key: entry[key] for key in ("path", "oid", "size")
        }
        if large is not None:
            pointer = large.get("pointerSize")
            made["lfs"] = {key: large[key] for key in ("oid", "size")}
            made["lfs"]["pointerSize"] = pointer if _is_size(pointer) else 0
        if _fits(entry.get("xetHash"), SHA256):  # for others, who read the cache's copy of the list
            made["xetHash"] = entry["xetHash"]
        if any(fnmatch(file, pattern) for pattern in self.patterns):
            blob = made.get("lfs", made)
            self.sizes[file] = blob["size"]
            if not (self.storage / "blobs" / blob["oid"]).exists():
                self.watch.promised += blob["size"]
        return made

    def _blob(self, file: str, said: Mapping[str, Any], pattern: re.Pattern[str]) -> None:
        oid, size = said.get("oid"), said.get("size")
        if not _fits(oid, pattern) or not _is_size(size):
            self.refuse(f"lists {brief(file)} with {brief(size)} bytes as {brief(oid)}")

    def _path(self, path: Any) -> str:
        """A path in a repository, which becomes one in the cache."""
        parts = path.split("/") if isinstance(path, str) else [""]
        bad = any(
            part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts
        )
        if bad or "\\" in path or _DRIVE.match(path) or not path.isprintable():
            self.refuse(f"lists {brief(path)}, which is no name of a file")
        return path

    def about(self, asked: Asked, url: str, head: Mapping[str, str]) -> dict[str, str]:
        """The headers of an answer about a file, made anew; what it promises is kept."""
        where = head.get("Location")
        linked, size = head.get("X-Linked-Etag"), head.get("X-Linked-Size")
        if where is not None:
            where = self.follow(asked, "HEAD", url, where)
            if linked is None and self.at_hub(where):  # moved within the hub, no more than that
                return {"Location": where}
        elif size is None:
            size = head.get("Content-Length")
        etag, commit = linked or head.get("ETag") or "", head.get("X-Repo-Commit")
        etag = etag.removeprefix("W/").removeprefix('"').removesuffix('"')
        if not _fits(etag, _NAME):
            self.refuse(f"gave {brief(etag)} as the ETag of {brief(asked.file)}")
        if not _fits(commit, _COMMIT) or commit != asked.commit:
            self.refuse(f"gave {brief(commit)} as the commit of {brief(asked.file)}")
        listed = self.sizes.get(asked.file)
        count = int(size) if _fits(size, _SIZE) else listed
        if count is None or listed not in (None, count):
            self.refuse(f"promises {brief(size)} bytes of {brief(asked.file)}, but lists {listed}")
        promise = Promise("bytes", commit, asked.file, etag, count)
        if asked.file not in self.sizes:  # the list was in the cache
            self.sizes[asked.file] = count
            self.watch.promised += count
        self._know("GET", where or url, promise)
        made = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "X-Linked-Size": str(count)}
        return made if where is None else made | {"Location": where}

    def _know(self, method: str, url: str, asked: Asked) -> None:
        """Remember what an address is for; one that is for two things would mix them up."""
        before = self.known.setdefault((method, url), asked)
        if before.what() != asked.what():
            self.refuse(f"gave one address for {brief(before.file)} and {brief(asked.file)}")


def _fits(value: object, pattern: re.Pattern[str]) -> TypeGuard[str]:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    parts = httpx.URL(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.raw_host.decode(), port
