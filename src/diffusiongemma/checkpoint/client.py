"""The transport of `huggingface_hub` behind the door: no answer reaches the library as it came.

Only the process that `fetch` starts has it, so the sessions of the caller's own process stay what
they are.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants

from diffusiongemma.checkpoint.door import SHA256, Asked, Door, Promise, Watch, httpx
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief

_HOPS = 10  # addresses that one request may be sent on to
_AGAIN = 5  # times that a file may be begun anew
_PIECE = 256  # bytes that a piece of a list counts for at least: one a byte took minutes to read
_SILENT_S = 20.0  # that a connection may say nothing
_KEPT = {
    "X-Error-Code": ("RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo"),
    "X-Error-Message": (
        "Invalid credentials in Authorization header",
        "Access to this resource is disabled.",
    ),
}


class Client(httpx.Client):
    """As the library's own, for the requests that `door` knows.

    Args:
        door: outlives the clients, which the library closes and opens as it likes.
    """

    def __init__(self, door: Door) -> None:
        super().__init__(follow_redirects=True)
        self._door = door

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """A request, and what it is sent on to; the answer is made anew."""
        door, waiting = self._door, _Waiting(self._door.watch)
        goes_on = options.pop("follow_redirects", None) is not False
        try:
            asked = door.asked(request.method, str(request.url))
            for _ in range(_HOPS):
                answer = self._ask(request, asked, **options)
                if not (answer.has_redirect_location and goes_on):
                    return self._made(asked, request, answer, waiting)
                answer.close()
                source, where = str(request.url), answer.headers["Location"]
                url = door.follow(asked, request.method, source, where)
                kept = {k: v for k, v in request.headers.items() if k != "host"}
                request = self.build_request(request.method, url, headers=kept)
            door.refuse(f"sent us on more than {_HOPS} times")
        except BaseException:
            waiting.end()
            raise

    def _ask(self, request: Any, asked: Asked, **options: Any) -> Any:
        """The answer to one request, its body unread."""
        door, head = self._door, request.headers
        if door.watch.refusal:
            raise CheckpointError(door.watch.refusal)
        head["Accept-Encoding"] = "identity"  # so that the bytes are the file's, and as many
        if not door.at_hub(str(request.url)):
            head.pop("Authorization", None)
        if isinstance(asked, Promise) and head.get("Range", "") != f"bytes={asked.came}-":
            head.pop("Range", None)  # what the library has is not what was counted: begin anew
        limits = request.extensions.get("timeout", {})
        waits = {k: limits.get(k) or _SILENT_S for k in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": waits}
        answer = super().send(request, stream=True, follow_redirects=False, **options)
        door.watch.got(sum(len(name) + len(value) for name, value in answer.headers.raw))
        return answer

    def _made(self, asked: Asked, request: Any, answer: Any, waiting: "_Waiting") -> Any:
        """What the library is given for an answer."""
        door, status, head = self._door, answer.status_code, answer.headers
        made: dict[str, Any] = {"status_code": status, "request": request}
        if isinstance(asked, Promise) and status in (200, 206):
            _plain(door, answer)
            return httpx.Response(stream=_Body(door, asked, request, answer, waiting), **made)
        try:
            if status >= 400:
                kept = {name: head[name] for name in _KEPT if head.get(name) in _KEPT[name]}
                return httpx.Response(headers=kept, content=b"{}", **made)
            if status != 200 and not (asked.kind == "about" and answer.has_redirect_location):
                door.refuse(f"answered with status {status}")
            _plain(door, answer)
            if asked.kind == "about":
                headers = door.about(asked, str(request.url), head)
                return httpx.Response(headers=headers, **made)
            text = self._read(answer)
            if asked.kind == "commit":
                return httpx.Response(content=door.commit(text), **made)
            headers = self._next(asked, answer)
            return httpx.Response(content=door.listing(text), headers=headers, **made)
        finally:
            answer.close()
            waiting.end()

    def _read(self, answer: Any) -> bytes:
        text = bytearray()
        for piece in answer.iter_raw():
            self._door.watch.got(len(piece))
            self._door.count_list(max(len(piece), _PIECE))
            text += piece
        return bytes(text)

    def _next(self, asked: Asked, answer: Any) -> dict[str, str]:
        """The header that leads to the next part of a list."""
        where = re.search(r'<([^>]*)>\s*;\s*rel="?next"?', answer.headers.get("Link", ""))
        if where is None:
            return {}
        url = self._door.follow(asked, "GET", str(answer.request.url), where[1])
        return {"Link": f'<{url}>; rel="next"'}


class _Waiting:
    """One answer that is waited for, until its end."""

    def __init__(self, watch: Watch) -> None:
        self._watch: Watch | None = watch
        watch.waits(1)

    def end(self) -> None:
        if self._watch is not None:
            self._watch.waits(-1)
        self._watch = None


class _Body(httpx.SyncByteStream):
    """The bytes of a file, as they were promised.

    The library keeps the whole chunks of a connection that breaks and asks for the rest. It is
    given nothing less than a chunk, so what was counted here is what it has.
    """

    def __init__(
        self, door: Door, promise: Promise, request: Any, answer: Any, waiting: _Waiting
    ) -> None:
        self._door, self._promise, self._answer, self._waiting = door, promise, answer, waiting
        if answer.status_code == 200 or "Range" not in request.headers:
            promise.begun += promise.came > 0
            promise.came, promise.digest = 0, hashlib.sha256()
        if promise.begun > _AGAIN:
            answer.close()
            door.refuse(f"began {brief(promise.file)} anew more than {_AGAIN} times")
        part = f"bytes {promise.came}-{promise.size - 1}/"
        if answer.status_code == 206 and not _says(answer, "Content-Range", part):
            answer.close()
            door.refuse(f"answered with another part of {brief(promise.file)}")

    def __iter__(self) -> Iterator[bytes]:
        promise, door, block = self._promise, self._door, bytearray()
        chunk, name = constants.DOWNLOAD_CHUNK_SIZE, brief(promise.file)
        for piece in self._answer.iter_raw():
            if door.watch.refusal:
                raise CheckpointError(door.watch.refusal)
            door.watch.got(len(piece))
            block += piece
            if promise.came + len(block) > promise.size:
                door.refuse(f"sent more than the {promise.size} bytes that it promised of {name}")
            while len(block) > chunk:
                yield self._counted(block[:chunk])
                del block[:chunk]
        last = self._counted(block)  # goes on when all is well, or a broken end would pass for one
        if promise.came != promise.size:
            door.refuse(f"sent {promise.came} of the {promise.size} bytes of {name}")
        if SHA256.fullmatch(promise.etag) and promise.digest.hexdigest() != promise.etag:
            door.refuse(f"sent other bytes of {name} than it promised: their SHA-256 differs")
        yield last

    def _counted(self, block: bytearray) -> bytes:
        self._promise.came += len(block)
        self._promise.digest.update(block)
        return bytes(block)

    def close(self) -> None:
        self._answer.close()
        self._waiting.end()


def _plain(door: Door, answer: Any) -> None:
    packed = answer.headers.get("Content-Encoding", "identity").lower()
    if packed != "identity":
        answer.close()
        door.refuse(f"packed an answer as {brief(packed)}, though asked not to")


def _says(answer: Any, name: str, start: str) -> bool:
    return answer.headers.get(name, "").startswith(start)
