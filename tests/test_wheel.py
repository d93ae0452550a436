"""The wheel that people install: built offline, complete, and importable away from this tree."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "diffusiongemma"

# Left out: __main__, which runs the command, and the triton kernels, for triton is optional.
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import diffusiongemma
skipped = ("diffusiongemma.__main__", "diffusiongemma.kernels.triton")
for module in pkgutil.walk_packages(diffusiongemma.__path__, "diffusiongemma."):
    if not module.name.startswith(skipped):
        importlib.import_module(module.name)
print(diffusiongemma.__file__)
"""


def run(*arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Without build isolation: the build backend comes with the `test` extra."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    run("-m", "pip", "wheel", *options, str(ROOT), cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        file.relative_to(PACKAGE.parent).as_posix()
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "diffusiongemma/py.typed" in sources
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == sources
    about = {name.partition(".dist-info/")[2] for name in names - packed}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= about


def test_a_package_index_shows_a_readme_without_broken_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        about = opened.read(name).decode()
    assert "# diffusiongemma" in about and "make demo" in about
    targets = re.findall(r"\]\(([^)]*)\)", about.partition("\n\n")[2])
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "`docs/small.md`" in about


def test_the_installed_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
        cwd=tmp_path,
    )
    where = run("-c", IMPORT_ALL, str(target), cwd=tmp_path).splitlines()[-1]
    assert Path(where) == target / "diffusiongemma" / "__init__.py"
