"""Two small checkpoints for the command, one with words and one without; and ways to call it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

import toys
from cli_help import Call, Done, edit
from cli_talk import Open
from cli_window import Window
from diffusiongemma.cli.main import main
from toys_words import SIZE, write_words


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tokenizer, template and vision tower, on each other's ids."""
    folder = tmp_path_factory.mktemp("cli") / "words"
    toys.write(toys.Toy(seed=41, vocabulary=SIZE), folder)
    marks = write_words(folder)
    edit(
        folder / "config.json",
        image_token_id=marks["<|image|>"],
        boi_token_id=marks["<|image>"],
        eoi_token_id=marks["<image|>"],
    )
    settings = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def bare(words: Path) -> Path:
    """The same without tokenizer and template."""
    folder = words.parent / "bare"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(words / name, folder)
    return folder


@pytest.fixture
def copy(words: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to break."""
    return Path(shutil.copytree(words, tmp_path / "copy"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (24, 16), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process."""

    def run(*words: object) -> Done:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does; gives its sentence."""

    def run(*words: object) -> str:
        done = call(*words)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("error: ") and done.err.endswith("\n"), done.err
        assert done.err.count("\n") == 1, done.err
        assert "Traceback" not in done.err
        return done.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the system has programs keep what they remember."""
    return tmp_path / "state"


@pytest.fixture
def opened(words: Path, state: Path) -> Iterator[Open]:
    """Begin a chat in a window."""
    windows: list[Window] = []

    def begin(*options: object, variables: Mapping[str, str] | None = None, **how) -> Window:
        variables = {"XDG_STATE_HOME": str(state)} | dict(variables or {})
        windows.append(Window("chat", "-m", words, *options, variables=variables, **how))
        return windows[-1]

    yield begin
    for window in windows:
        window.process.kill()
        window.process.wait()
