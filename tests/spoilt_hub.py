"""Answers of a hub that are spoilt on purpose, and what a fetch says of them.

The library, the transport and the door run here as in the process that `fetch` starts, and the hub
is a server on this machine.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from diffusiongemma.checkpoint.client import Client
from diffusiongemma.checkpoint.door import Door, Watch
from diffusiongemma.checkpoint.fetch import FILES, Job, snapshot
from diffusiongemma.core.errors import CheckpointError
from hub_stand_in import Reply, Request, StandIn, serve

NAME = "acme/tiny-gemma"
CONTENT = {
    "config.json": b'{"model_type": "diffusion_gemma"}',
    "sub/more.json": b"{}",
    "model.safetensors": random.Random(0).randbytes(300_000),
}
WEIGHTS = CONTENT["model.safetensors"]
Spoil = Callable[[Request, Reply], None]


@contextmanager
def spoilt_hub(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in with one model, and the switches of the process that fetches."""
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.setattr(_http.time, "sleep", lambda seconds: None)  # before it tries again
    patch.chdir(folder)
    with serve() as state:
        state.add(NAME, CONTENT)
        yield state
        huggingface_hub.set_client_factory(_http.default_client_factory)


def take(hub: StandIn, cache: Path, watch: Watch | None = None) -> Path:
    """The folder of the model, fetched through a door of its own."""
    job = Job(NAME, "main", "hf_secret", hub.url, str(cache))
    door = Door(hub.url, NAME, job.storage, FILES, watch or Watch())
    huggingface_hub.set_client_factory(lambda: Client(door))
    try:
        return Path(snapshot(job, local=False))
    except CheckpointError as error:
        raise CheckpointError(door.watch.refusal or str(error)) from error
    finally:
        assert door.watch.open == 0


def refused(hub: StandIn, tmp_path: Path, spoil: Spoil) -> str:
    """The sentence for a spoilt answer; nothing was written that should not be."""
    hub.spoil = spoil
    with pytest.raises(CheckpointError) as caught:
        take(hub, tmp_path / "cache" / str(len(hub.requests)))  # a new one: it keeps lists
    said = str(caught.value)
    assert said.isprintable() and len(said) < 700
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    stored = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    for path in stored:
        assert path.resolve().is_relative_to(tmp_path / "cache"), path
        assert path.suffix in ("", ".lock", ".json", ".safetensors", ".TAG"), path
    return said


def at(end: str, method: str = "") -> Callable[[Request], bool]:
    return lambda asked: end in asked.path and asked.method.startswith(method)


COMMIT, TREE = at("/revision/"), at("/tree/")
CONFIG, LARGE = at("/config.json", "HEAD"), at("resolve", "HEAD")
GET_CONFIG, GET_LARGE = at("/config.json", "GET"), at("/large/", "GET")


def header(where: Callable[[Request], bool], name: str, value: str | None) -> Spoil:
    """Change one header of some answers."""

    def spoil(asked: Request, reply: Reply) -> None:
        if where(asked) and (name in reply.headers or value is not None):
            reply.headers.pop(name, None)
            reply.headers |= {} if value is None else {name: value}

    return spoil


def body(where: Callable[[Request], bool], text: bytes) -> Spoil:
    """Change the body of some answers, and its length."""

    def spoil(asked: Request, reply: Reply) -> None:
        if where(asked):
            reply.body, reply.headers["Content-Length"] = text, str(len(text))

    return spoil


def entry(**change: object) -> Spoil:
    """Change an entry of the list of files: config.json's, or its `lfs` part."""

    def spoil(asked: Request, reply: Reply) -> None:
        if TREE(asked):
            entries = json.loads(reply.body)
            large = next(one for one in entries if "lfs" in one)
            for name, value in change.items():
                part, _, key = name.rpartition("__")
                (large["lfs"] if part == "lfs" else large if part else entries[0])[key] = value
            body(TREE, json.dumps(entries).encode())(asked, reply)

    return spoil


def raw(where: Callable[[Request], bool], text: bytes) -> Spoil:
    """Send something else than HTTP."""

    def spoil(asked: Request, reply: Reply) -> None:
        reply.raw = text if where(asked) else None

    return spoil


def status(where: Callable[[Request], bool], number: int, **headers: str) -> Spoil:
    """Change the status of some answers."""

    def spoil(asked: Request, reply: Reply) -> None:
        if where(asked):
            reply.status = number
            reply.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    return spoil
