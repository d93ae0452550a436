"""The process that fetches: what it is told and keeps to itself, and how it ends."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from diffusiongemma.checkpoint import fetch
from diffusiongemma.checkpoint.door import Watch
from diffusiongemma.checkpoint.hub import find
from diffusiongemma.core.errors import CheckpointError
from hub_stand_in import Reply, Request, StandIn, serve

NAME = "acme/tiny-gemma"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 2000}
FIND = """
import sys
from diffusiongemma.checkpoint.hub import find
print(find("acme/tiny-gemma", endpoint=sys.argv[1], progress=False))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve() as state:
        state.add(NAME, FILES)
        yield state


def drip(asked: Request, reply: Reply) -> None:
    """A large file comes byte by byte, and never wholly."""
    if asked.method == "GET" and "/large/" in asked.path:
        reply.pause = 0.05


def half_done(place: Path) -> list[Path]:
    return list(place.rglob("*.incomplete"))


def until(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


# A hub that is given up


@pytest.mark.parametrize("what", ["body", "headers", "silence", "silent list"])
def test_a_hub_that_says_little(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The library alone would wait for all of these as long as something comes, or five minutes."""

    def spoil(asked: Request, reply: Reply) -> None:
        if what == "silent list" and "/tree/" in asked.path:
            reply.raw, reply.pause = b"x", 1e6
        if what == "headers" and "/revision/" in asked.path:
            reply.raw, reply.pause = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, 0.05
        if asked.method == "GET" and "/large/" in asked.path:
            reply.pause = 0.05 if what == "body" else 1e6

    monkeypatch.setattr(fetch, "PATIENCE_S", 1.0)
    hub.spoil = spoil
    with pytest.raises(CheckpointError, match=r"sent less than 64 KB in 1 seconds; check the"):
        find(NAME, endpoint=hub.url, progress=False)
    assert half_done(tmp_path) == []
    if what == "headers" or hub.gets("model.safetensors"):
        assert what in ("silence", "silent list") or hub.left.wait(30)  # nobody is there any more


def test_a_slow_hub_is_waited_for() -> None:
    watch, patience = Watch(), fetch.Patience(60)
    watch.waits(1)
    for _ in range(100):  # 1.1 KB a second
        watch.got(fetch.LEAST)
        assert not patience.over(watch, 60)
    watch.got(fetch.LEAST - 1)
    assert patience.over(watch, 1)


def test_only_waiting_counts() -> None:
    watch, patience = Watch(), fetch.Patience(60)
    for _ in range(100):
        assert not patience.over(watch, 60)
    for _ in range(30):  # many small answers do not begin it anew
        watch.waits(1)
        assert not patience.over(watch, 2)
        watch.waits(-1)
    watch.waits(1)
    assert patience.over(watch, 2)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_waits_no_more_leaves_nothing_behind(
    hub: StandIn, tmp_path: Path, end: signal.Signals
) -> None:
    hub.spoil = drip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    waiting = subprocess.Popen(
        [sys.executable, "-c", FIND, hub.url], env=environment, stderr=subprocess.PIPE, text=True
    )
    until(lambda: hub.gets("model.safetensors") and half_done(tmp_path))
    waiting.send_signal(end)
    _, said = waiting.communicate(timeout=20)
    assert waiting.returncode and ("KeyboardInterrupt" in said) == (end == signal.SIGINT)
    assert hub.left.wait(30)
    until(lambda: not half_done(tmp_path))


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"ended with -9 \(\); run again"),
        ("import nonsense", r"ended with 1 \(ModuleNotFoundError: No module named 'nonsense'\)"),
        ("import os; os._exit(0)", r"ended with 0 \(\); run again"),
    ],
)
def test_a_process_that_dies(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, begin: str, said: str
) -> None:
    monkeypatch.setattr(fetch, "_BEGIN", begin)
    with pytest.raises(CheckpointError, match=f"the process for it {said}"):
        find(NAME, endpoint=hub.url, progress=False)


# What the caller has


def test_the_callers_session_stays_as_it_is(hub: StandIn) -> None:
    session = huggingface_hub.get_session()
    find(NAME, endpoint=hub.url, progress=False)
    hub.fail = 500
    with pytest.raises(CheckpointError):
        find("acme/other", endpoint=hub.url, progress=False)
    assert huggingface_hub.get_session() is session and not session.is_closed


def test_two_at_once_do_not_meet(hub: StandIn) -> None:
    with serve() as other:
        other.add("acme/other", FILES)
        other.spoil = lambda asked, reply: reply.headers.update({"ETag": '"../../x"'})
        said: list[str] = []

        def refused() -> None:
            with pytest.raises(CheckpointError) as caught:
                find("acme/other", endpoint=other.url, progress=False)
            said.append(str(caught.value))

        thread = threading.Thread(target=refused)
        thread.start()
        assert (find(NAME, endpoint=hub.url, progress=False) / "config.json").is_file()
        thread.join()
    assert "gave '../../x' as the ETag of 'config.json'" in said[0]


def test_an_etag_that_climbs_writes_nothing(hub: StandIn, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    hub.spoil = lambda asked, reply: reply.headers.update({"ETag": '"../../../site/zz.pth"'})
    with pytest.raises(CheckpointError, match=r"as the ETag of .*; use a hub that you trust"):
        find(NAME, endpoint=hub.url, progress=False)
    assert list(site.iterdir()) == []


# The token


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no list of processes")
def test_the_token_is_in_no_list_of_processes(hub: StandIn) -> None:
    hub.add("acme/locked", FILES, token="hf_very_secret")
    seen: list[bytes] = []

    def spoil(asked: Request, reply: Reply) -> None:
        for file in ("cmdline", "environ"):
            for path in Path("/proc").glob(f"[0-9]*/{file}"):
                try:
                    seen.append(path.read_bytes())
                except OSError:
                    continue

    hub.spoil = spoil
    find("acme/locked", endpoint=hub.url, token="hf_very_secret", progress=False)
    assert any(b"from diffusiongemma.checkpoint import fetch" in text for text in seen)
    assert not any(b"hf_very_secret" in text for text in seen)


@contextmanager
def proxy(port: int) -> Iterator[str]:
    """A proxy that leads every secret connection to one port of this machine."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            with socket.create_connection(("127.0.0.1", port)) as there:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=carry, args=(there, self.connection))
                back.start()
                carry(self.connection, there)
                back.join()

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True  # they end with what they carry
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for two hosts, in one file."""
    place = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=huggingface.co"
    hosts = ["-addext", "subjectAltName=DNS:huggingface.co,DNS:cdn.example.com"]
    files = ["-keyout", str(place), "-out", f"{place}.crt"]
    try:
        subprocess.run([*command.split(), *hosts, *files], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl makes a certificate")
    place.write_bytes(place.read_bytes() + Path(f"{place}.crt").read_bytes())
    return place


@pytest.mark.parametrize("host", ["huggingface.co", "cdn.example.com"])
def test_the_token_goes_to_no_other_host(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, certificate: Path, host: str
) -> None:
    """The library would give it to huggingface.co, whatever hub it was meant for."""
    hub.add("acme/locked", FILES, token="hf_secret")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serve(context) as storage, proxy(int(storage.url.rpartition(":")[2])) as way:
        storage.repos = hub.repos
        hub.storage = f"https://{host}"
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, way)
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        folder = find("acme/locked", endpoint=hub.url, token="hf_secret", progress=False)
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert [asked.authorization for asked in storage.gets("model.safetensors")] == [None]
        assert not any(asked.authorization for asked in storage.requests)
    assert all(asked.authorization == "Bearer hf_secret" for asked in hub.requests)


# What lies in the cache


def test_a_snapshot_leads_nowhere_else(hub: StandIn, tmp_path: Path) -> None:
    folder = find(NAME, endpoint=hub.url, progress=False)
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "others").mkdir()
    evil = folder / "evil.json"
    for make in (
        lambda: evil.symlink_to(tmp_path / "secret.json"),
        lambda: evil.symlink_to(tmp_path / "others"),
        lambda: evil.symlink_to(folder.parent),
        lambda: evil.symlink_to(tmp_path / "nothing"),
        lambda: evil.symlink_to("/dev/zero"),
        lambda: os.mkfifo(evil),
    ):
        make()
        with pytest.raises(CheckpointError, match=r"evil\.json in the cache is no file of"):
            find(NAME, endpoint=hub.url, progress=False, offline=True)
        evil.unlink()
    evil.symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match=r"evil\.json in the cache is no file of"):
        find(NAME, endpoint=hub.url, progress=False)
    evil.unlink()
    assert find(NAME, endpoint=hub.url, progress=False) == folder


def test_a_cache_behind_links_is_a_cache(hub: StandIn, tmp_path: Path) -> None:
    find(NAME, endpoint=hub.url, progress=False)
    (tmp_path / "hub/models--acme--tiny-gemma").rename(tmp_path / "larger disk")
    (tmp_path / "hub/models--acme--tiny-gemma").symlink_to(tmp_path / "larger disk")
    (tmp_path / "hub").rename(tmp_path / "moved")
    (tmp_path / "hub").symlink_to(tmp_path / "moved")
    assert (find(NAME, endpoint=hub.url, progress=False) / "config.json").is_file()


def test_a_reference_that_climbs(hub: StandIn, tmp_path: Path) -> None:
    """It may have been written by a library without this door."""
    find(NAME, endpoint=hub.url, progress=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.json").write_text("{}")
    reference = tmp_path / "hub/models--acme--tiny-gemma/refs/main"
    reference.write_text("../../../elsewhere")
    with pytest.raises(CheckpointError, match="in the cache is no file of 'acme/tiny-gemma'"):
        find(NAME, endpoint=hub.url, progress=False, offline=True)


def test_a_list_in_the_cache_that_climbs(hub: StandIn, tmp_path: Path) -> None:
    """So may this one, and storage that makes a file's name of it is not asked."""
    place, commit = tmp_path / "hub/models--acme--tiny-gemma", hub.repos[NAME].refs["main"]
    (tmp_path / "site").mkdir()
    evil = {"size": 512_000, "blob_id": "a", "lfs_size": 512_000, "xet_hash": "a" * 64}
    evil |= {"lfs_sha256": "../../../site/zz.pth"}
    files = {"config.json": {"size": 2, "blob_id": "b"}, "model.safetensors": evil}
    (place / "trees").mkdir(parents=True)
    listed = {"format_version": 1, "files": files}
    (place / f"trees/{commit}.json").write_text(json.dumps(listed))
    folder = find(NAME, endpoint=hub.url, progress=False)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not any("/tree/" in asked.path for asked in hub.requests)
    assert list((tmp_path / "site").iterdir()) == []
