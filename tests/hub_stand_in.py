"""A Hugging Face hub on this machine, as small as the client library allows.

Knows five doors: a repository at a revision, its list of files, and HEAD and GET of one file, with
ranges, tokens, and connections that break on purpose; a large file lies at an address of its own,
which the hub sends on to. An answer may be spoilt before it goes out. Keeps nothing on disk. It was
written from what `huggingface_hub` 2.4 asks for; it has no notion of xet storage or of uploads.
"""

import hashlib
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repo:
    """One repository: files by commit, and the names that point to commits.

    Attributes:
        commits: full hash -> path -> content.
        refs: branch or tag -> full hash.
        token: the token that opens it, or None for a public one.
        gated: whether a locked repository shows its list (gated) or hides altogether (private).
    """

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False


@dataclass
class Reply:
    """One answer, before it goes out.

    Attributes:
        raw: what goes out in place of all the rest, or None.
        pause: seconds before each byte of `raw`, or of the body.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes | None = None
    pause: float = 0.0


@dataclass
class Request:
    """One request as it arrived, and the number of body bytes that went back."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class StandIn:
    """The hub's state, shared with the test: repositories, faults to come, requests seen.

    Attributes:
        cuts: file name -> bytes after which the next GET of it breaks off, once.
        fail: a status to answer everything with, or None.
        spoil: changes an answer in place, after its request.
        storage: the address of large files, if it is not the hub's own.
        left: set when somebody went away before the end of an answer.
        closed: set when the server ends; who sleeps wakes up.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    fail: int | None = None
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    spoil: Callable[[Request, Reply], None] | None = None
    storage: str | None = None
    left: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, files: dict[str, bytes], **options: object) -> str:
        """Publish one more commit of `name` on its main branch; the commit's hash."""
        repo = self.repos.setdefault(name, Repo({}, {}))
        commit = hashlib.sha1(f"{name}{len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = files
        repo.refs["main"] = commit
        for option, value in options.items():
            setattr(repo, option, value)
        return commit

    def gets(self, file: str) -> list[Request]:
        """The GET requests for one file, in order."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{file}")]


@contextmanager
def serve(secret: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    """A stand-in that listens on a free port of the loopback until the block ends.

    Args:
        secret: speak https with its certificate.
    """
    state = StandIn()
    handler = type("Handler", (_Handler,), {"state": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        if secret is not None:
            server.socket = secret.wrap_socket(server.socket, server_side=True)
        state.url = f"http{'s' * (secret is not None)}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.closed.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # the other end has had enough
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go out apart; the second need not wait
    state: StandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass  # tests read `requests` instead

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        asked = self.headers.get("Range"), self.headers.get("Authorization")
        self.seen = Request(self.command, path, *asked)
        self.state.requests.append(self.seen)
        if self.state.fail is not None:
            return self._reply(self.state.fail)
        match path.strip("/").split("/"):
            case ["api", "models", org, name, ("revision" | "tree") as what, revision]:
                self._api(f"{org}/{name}", what, revision)
            case [org, name, "resolve", revision, *rest]:
                self._resolve(f"{org}/{name}", revision, "/".join(rest))
            case ["large", digest, commit, *_]:
                self._large(digest, commit)
            case _:
                self._reply(404)

    def _commit(self, name: str, revision: str, listing: bool) -> str | None:
        """The commit behind a revision; None if the refusal was already sent."""
        repo = self.state.repos.get(name)
        given = (self.seen.authorization or "").removeprefix("Bearer ")
        shut = repo is not None and repo.token is not None and given != repo.token
        if repo is not None and shut and given:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (shut and not repo.gated):
            self._refuse(404 if given else 401, "RepoNotFound")
        elif shut and not listing:
            self._refuse(401, "GatedRepo")
        else:
            commit = repo.refs.get(revision, revision)
            if commit in repo.commits:
                return commit
            self._refuse(404, "RevisionNotFound")
        return None

    def _api(self, name: str, what: str, revision: str) -> None:
        commit = self._commit(name, revision, listing=True)
        if commit is None:
            return
        files = self.state.repos[name].commits[commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            answer: object = {"id": name, "sha": commit, "siblings": siblings}
        else:
            answer = [_entry(path, body) for path, body in files.items()]
        self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        commit = self._commit(name, revision, listing=False)
        if commit is None:
            return
        body = self.state.repos[name].commits[commit].get(file)
        if body is None:
            return self._refuse(404, "EntryNotFound")
        if not _is_large(file):
            return self._file(body, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": commit}, file)
        digest = hashlib.sha256(body).hexdigest()
        where = f"{self.state.storage or ''}/large/{digest}/{commit}/{file}"
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
        self._reply(302, b"", linked | {"Location": where, "X-Repo-Commit": commit})

    def _large(self, digest: str, commit: str) -> None:
        for repo in self.state.repos.values():
            for body in repo.commits.get(commit, {}).values():
                if hashlib.sha256(body).hexdigest() == digest:
                    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
                    return self._file(body, headers, self.path.rpartition("/")[2])
        self._reply(404)

    def _file(self, body: bytes, headers: dict[str, str], file: str) -> None:
        headers |= {"Accept-Ranges": "bytes"}
        start = 0
        if self.seen.range:
            start = int(self.seen.range.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.state.cuts.pop(file, None) if self.command == "GET" else None
        self._reply(206 if start else 200, body[start:], headers, cut)

    def _refuse(self, status: int, code: str, message: str = "no") -> None:
        self._reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _reply(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        full = {"Content-Length": str(len(body))} | (headers or {})
        reply = Reply(status, full, body if self.command == "GET" else b"")
        if self.state.spoil is not None:
            self.state.spoil(self.seen, reply)
        if reply.raw is not None:
            self.close_connection = True
            return self._send(reply.raw, reply.pause)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(reply.body[:cut], reply.pause)
        self.seen.sent = len(reply.body[:cut])
        if cut is not None:
            self.close_connection = True  # fewer bytes than Content-Length promised

    def _send(self, body: bytes, pause: float) -> None:
        try:
            if not pause:
                self.wfile.write(body)
            for byte in body if pause else b"":
                if self.state.closed.wait(pause):
                    break
                self.wfile.write(bytes([byte]))
        except OSError:
            self.close_connection = True
            self.state.left.set()


def _entry(path: str, body: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": _etag(body)}
    if _is_large(path):
        digest = hashlib.sha256(body).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(body), "pointerSize": 130}
    return entry


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt"))


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
