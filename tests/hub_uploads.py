"""The doors of a hub through which repositories are made and files come in.

Written from what `huggingface_hub` 2.4 sends without xet: whether a repository exists, to make one,
a branch, which files are large, where large ones go, and a commit of all of them. A commit counts
only if what it names has arrived.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_writes"
READS = "hf_reads"


@dataclass
class Kept:
    """One repository.

    Attributes:
        branches: name -> hashes of its commits, oldest first.
        commits: hash -> path -> content.
    """

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=lambda: {"main": []})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        """One more commit."""
        commit = hashlib.sha1(f"{id(self)}{len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch].append(commit)
        return commit

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        return self.commits[self.branches[branch][-1]]


@dataclass
class Uploads:
    """The hub's state.

    Attributes:
        large: sha256 -> content that has arrived.
        asked: methods and paths, in order.
        answers: path -> a status and a body that it is answered with instead.
    """

    repos: dict[str, Kept] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    summaries: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> None:
        """A repository that exists."""
        self.repos[name] = Kept(private)
        self.repos[name].add("main", files)


@contextmanager
def serve() -> Iterator[Uploads]:
    """Listen on a free port of the loopback until the block ends."""
    state = Uploads()
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Uploads

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        body = self._body()
        self.state.asked.append(f"{self.command} {path}")
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path in self.state.answers:
            status, said = self.state.answers[path]
            return self._send(status, said)
        match [self.command, *path.strip("/").split("/")]:
            case ["GET", "api", "models", org, name, *rest]:
                self._info(f"{org}/{name}", rest[1] if rest else "main", given)
            case ["PUT", "large", digest]:
                ours = hashlib.sha256(body).hexdigest() == digest
                self.state.large |= {digest: body} if ours else {}
                self._send(200 if ours else 400)
            case ["POST", "api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["POST", *_] if given != TOKEN:
                self._send(403 if given == READS else 401, b"{}")
            case ["POST", "api", "repos", "create"]:
                self._create(json.loads(body))
            case ["POST", "api", "models", org, name, what, revision]:
                repo = self.state.repos[f"{org}/{name}"]
                getattr(self, f"_{what}")(repo, f"{org}/{name}", revision, body)
            case ["POST", org, repository, "info", "lfs", "objects", "batch"]:
                assert f"{org}/{repository.removesuffix('.git')}" in self.state.repos
                self._batch(json.loads(body))
            case _:
                self._send(404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _info(self, name: str, revision: str, given: str) -> None:
        repo = self.state.repos.get(name)
        if repo is None or (repo.private and given not in (TOKEN, READS)):
            return self._send(404 if given else 401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in repo.branches:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit = repo.branches[revision][-1]
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        about = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings}
        self._json(about)

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.state.repos
        if not there:
            self.state.add(
                name,
                {".gitattributes": b"*.safetensors filter=lfs"},
                private=asked.get("visibility") == "private",
            )
        self._json({"url": f"{self.state.url}/{name}"}, 409 if there else 200)

    def _branch(self, repo: Kept, name: str, branch: str, body: bytes) -> None:
        if branch in repo.branches:
            return self._json({"error": "exists"}, 409)
        repo.branches[branch] = list(repo.branches["main"])
        self._json({})

    def _preupload(self, repo: Kept, name: str, branch: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict) -> None:
        objects = []
        for one in asked["objects"]:
            door = {"href": f"{self.state.url}/large/{one['oid']}", "header": {}}
            wanted = {} if one["oid"] in self.state.large else {"actions": {"upload": door}}
            objects.append({"oid": one["oid"], "size": one["size"], **wanted})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Kept, name: str, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches[branch][-1]):
            return self._json({"error": "changed"}, 412)
        files = dict(repo.files(branch))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        commit = repo.add(branch, files)
        self.state.summaries.append(header["summary"])
        url = f"{self.state.url}/{name}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
