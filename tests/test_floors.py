"""No version with a known hole is admitted: neither by what we need, nor by what we install."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# The last version with each hole, of libraries that read what strangers send. Where a hole lies in
# what we do not use, it is listed all the same: others in the same process may.
HOLES = [
    ("jinja2", "3.1.2", "CVE-2024-22195: attributes from keys"),
    ("jinja2", "3.1.3", "CVE-2024-34064: attributes from keys, again"),
    ("jinja2", "3.1.4", "CVE-2024-56201, CVE-2024-56326: out of the sandbox by str.format"),
    ("jinja2", "3.1.5", "CVE-2025-27516: out of the sandbox by |attr"),
    ("pillow", "9.5.0", "CVE-2023-44271: memory by long text"),
    ("pillow", "10.0.0", "CVE-2023-4863: WebP writes beyond its memory"),
    ("pillow", "10.1.0", "CVE-2023-50447: ImageMath runs code"),
    ("pillow", "10.2.0", "CVE-2024-28219: colour profiles write beyond their memory"),
    ("pillow", "11.2.1", "CVE-2025-48379: DDS writes beyond its memory"),
    ("pillow", "12.1.0", "CVE-2026-25990: PSD writes beyond its memory"),
    ("pillow", "12.1.1", "CVE-2026-40192, CVE-2026-42311: FITS bomb; tiles beyond their memory"),
    ("pillow", "12.2.0", "CVE-2026-59197: a filter writes beyond its memory"),
    ("pillow", "12.3.0", "CVE-2026-96639, CVE-2026-112403: JPEG writes beyond its memory"),
    ("tqdm", "4.66.2", "CVE-2024-34062: options of the command run code"),
]


def key(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def needed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {key(r.name): r for r in map(Requirement, project["dependencies"])}


def installed() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.partition("#")[0].strip().split("==") for line in lines)
    return {key(pin[0]): pin[1] for pin in pins if len(pin) == 2}


@pytest.mark.parametrize(("name", "version", "why"), HOLES)
def test_versions_with_holes_are_not_admitted(name: str, version: str, why: str) -> None:
    assert not needed()[name].specifier.contains(version), why
    assert installed()[name] != version, why


def test_what_is_installed_is_what_is_needed() -> None:
    pins = installed()
    for name, requirement in needed().items():
        assert requirement.specifier.contains(pins[name]), requirement
