"""Conversations on disk: kept for the next time, saved, read again; and who can see them."""

import io
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import diffusiongemma as dg
from cli_help import COMMAND, ENVIRONMENT, QUICK, Call
from cli_talk import OPTIONS, Open, replies_as_they_are, seen_in
from diffusiongemma.cli import saved
from diffusiongemma.cli.screen import printable
from diffusiongemma.core.errors import InputError


def kept(state: Path) -> list[dict[str, str]]:
    """What lies on disk of the last conversation; only its owner can see it."""
    file = state / "diffusiongemma" / "chat.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]
    return json.loads(file.read_text(encoding="utf-8"))


def turns(said: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in said]


def test_the_last_conversation_goes_on(opened: Open, words: Path, state: Path) -> None:
    (state / "diffusiongemma").mkdir(mode=0o755, parents=True)
    window = opened(*QUICK, "-s", "be brief")
    window.until(window.asks)
    window.type("hello\n")
    window.until(window.asks)
    talk = dg.load(words).converse(system="be brief", **OPTIONS)
    first, second = (talk.generate(turn, seed=3).text for turn in ("hello", "and then?"))
    said = [("system", "be brief"), ("user", "hello"), ("assistant", first)]
    assert turns(kept(state)) == said
    window.process.kill()  # what was said is on the disk
    window = opened(*QUICK, "-c")
    window.until(window.asks)
    assert "it goes on after 2 messages:\n> hello\n" in window.text
    window.type("\x1b[A")  # the arrow that points up
    window.until(lambda: window.text.endswith("> hello"))
    window.type("\x03")
    window.until(window.asks)
    window.type("and then?\n")
    window.until(window.asks)
    assert "\n".join(seen_in(60, printable(second))) in window.text
    said += [("user", "and then?"), ("assistant", second)]
    assert turns(kept(state)) == said
    window.type("/undo\n")
    window.until(window.asks)
    assert turns(kept(state)) == said[:3]
    window.type("/new\n")
    window.until(window.asks)
    assert turns(kept(state)) == said[:3]  # until something is said in its place


def test_a_private_conversation_leaves_nothing(opened: Open, state: Path) -> None:
    window = opened(*QUICK, "--private")
    window.until(window.asks)
    window.type("hello\n")
    window.until(window.asks)
    window.type("\x04")
    assert window.close() == 0 and not state.exists()


def test_a_conversation_that_cannot_be_kept_goes_on(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    window = opened(*QUICK, variables={"XDG_STATE_HOME": str(tmp_path / "file")}, columns=200)
    window.until(window.asks)
    for count in (1, 2):
        window.type("hello\n")
        window.until(window.asks)
        assert window.text.count(", seed 3") == count
    (note,) = (line for line in window.text.split("\n") if "not kept" in line)
    assert note.startswith("this conversation is not kept for -c: ")
    assert note.endswith("file/diffusiongemma: Not a directory")


def piped(words: Path, state: Path, text: str, *options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, "chat", "-m", str(words), *QUICK, *map(str, options)],
        input=text.encode(),
        capture_output=True,
        env=ENVIRONMENT | {"XDG_STATE_HOME": str(state)},
        timeout=120,
    )


def test_a_conversation_is_saved_and_read_again(words: Path, state: Path, tmp_path: Path) -> None:
    file = tmp_path / "a talk.json"
    file.touch(0o644)
    first, second = replies_as_they_are(words, "hello", "and then?")
    done = piped(words, state, f"hello\n/save {file}\n")
    assert done.stderr.decode() == f"2 messages are in {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    said = [("user", "hello"), ("assistant", first)]
    assert turns(json.loads(file.read_text(encoding="utf-8"))) == said
    done = piped(words, state, f"and then?\n/save {file}\n", "-c", file)
    assert done.stdout.decode() == second + "\n"
    said += [("user", "and then?"), ("assistant", second)]
    assert turns(json.loads(file.read_text(encoding="utf-8"))) == said
    assert not state.exists()  # a pipe is kept only if it asks for the last one


def test_a_script_may_go_on_with_the_last(opened: Open, words: Path, state: Path) -> None:
    window = opened(*QUICK)
    window.until(window.asks)
    window.type("hello\n")
    window.until(window.asks)
    window.type("\x04")
    window.close()
    assert piped(words, state, "and then?", "-c").returncode == 0
    assert [role for role, _ in turns(kept(state))] == ["user", "assistant"] * 2
    assert piped(words, state, "so?", "-c", "--private").returncode == 0
    assert len(kept(state)) == 4


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/save", "/save needs the name of a file"),
        ("/save {tmp}/none/a.json", "there is no such folder; make it first"),
        ("/save {tmp}", "it is a folder"),
        ("/save {tmp}/notes", "notes' is there and no conversation; name another file"),
        ("/undo\n/save {tmp}/a.json", "nothing was said yet, so there is nothing to save"),
    ],
)
def test_what_cannot_be_saved(
    call: Call, words: Path, tmp_path: Path, line: str, sentence: str
) -> None:
    (tmp_path / "notes").write_text("[1, 2]")
    said = io.StringIO("hello\n" + line.format(tmp=tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", said)
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        done = call("chat", "-m", words, *QUICK)
    assert done.code == 2 and sentence in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "[1, 2]"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is no saved conversation (Expecting value"),
        ("{}", "is no saved conversation (it is a dict and no list)"),
        ('[{"role": "user"}]', "is no saved conversation (message 1 has no content"),
        ('[{"role": "usr", "content": ""}]', "(message 1: unknown role 'usr'"),
        ("[" * 100_000, "is no saved conversation"),
        (
            '[{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]',
            "is no saved conversation (it holds pictures)",
        ),
    ],
)
def test_what_no_conversation_is(
    refused: Callable[..., str], words: Path, tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "a.json"
    if text is not None:
        file.write_text(text)
    with open(os.devnull, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        assert sentence in refused("chat", "-m", words, "-c", file)
        patch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert "no conversation was kept to go on with" in refused("chat", "-m", words, "-c")
        os.mkfifo(tmp_path / "pipe")
        assert "is no file" in refused("chat", "-m", words, "-c", tmp_path / "pipe")


def test_where_the_last_one_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert saved.last() == Path("/state/diffusiongemma/chat.json")
    for nothing in ("", "state"):  # by the rules of that variable, a relative one is none
        monkeypatch.setenv("XDG_STATE_HOME", nothing)
        assert saved.last() == Path("/home/me/.local/state/diffusiongemma/chat.json")
    monkeypatch.setenv("HOME", "me")
    with pytest.raises(InputError, match="HOME must be an absolute path"):
        saved.last()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give away")
def test_a_folder_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "diffusiongemma").mkdir()
    os.chown(tmp_path / "diffusiongemma", 12345, 12345)
    with pytest.raises(InputError, match="belongs to another user"):
        saved.keep([{"role": "user", "content": "hello"}])
    assert list((tmp_path / "diffusiongemma").iterdir()) == []
