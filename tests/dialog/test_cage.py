"""The process of a chat template: it stays, it comes back, it goes, and nobody else can hold it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jinja2.filters import FILTERS

from diffusiongemma.core.errors import DeviceError, InputError
from diffusiongemma.dialog import cage, caged
from diffusiongemma.dialog.cage import Cage, Limits
from diffusiongemma.dialog.template import Template

ENDLESS = "{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}"


def made(source: str, **limits: Any) -> Cage:
    """A cage of its own: that of a Template is shared by all of the same text."""
    return Cage(source, Limits(**limits))


def number(kept: Cage) -> int:
    """The id of the one process that waits."""
    (process,) = kept._idle
    assert isinstance(process, cage._Process)
    return process._popen.pid


def run(program: str, *arguments: str) -> list[str]:
    """What an interpreter of its own prints; it must be silent else."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_it_stays_between_requests_and_after_errors() -> None:
    kept = made("{{ x.y or raise_exception('no') }}")
    assert kept.render({"x": {"y": "1"}}) == ("text", "1")
    first = number(kept)
    assert kept.render({"x": {}}) == ("refused", "no")
    assert kept.render({})[0] == "failed"
    assert kept.render({"x": {"y": 2}}) == ("text", "2")
    assert number(kept) == first


def test_one_text_has_one_cage() -> None:
    assert Template("one")._cage is Template("one", "another name")._cage
    assert Template("one")._cage is not Template("two")._cage
    assert Template("one")._cage is not Template("one", limits=Limits(seconds=2))._cage


def test_values_pass_unchanged() -> None:
    value = {
        "": [None, True, -(10**4000), 1e308, 5e-324, 0.1], "ü\ud800\n": "\x00\U0001f600\ufdd0",
    }  # fmt: skip
    there = made("{{ x | tojson(ensure_ascii=true) }}").render({"x": value})
    assert json.loads(there[1]) == value
    assert made("{{ x }}").render({"x": "ü\ud800\x00\U0001f600"}) == (
        "text",
        "ü\ud800\x00\U0001f600",
    )


def test_values_that_are_no_json() -> None:
    with pytest.raises(InputError, match=r"cannot be written as JSON .*use shorter numbers"):
        Template("{{ x }}").render({"x": 10**5000})
    inner: list[Any] = []
    inner.append(inner)
    with pytest.raises(InputError, match="cannot be written as JSON"):
        Template("{{ x }}").render({"x": inner})


def test_filters_find_what_they_import_late() -> None:
    """Inside, no file can be opened once the template is there."""
    values = ("'a <b> www.a.de &amp; b'", "['b', 'a']", "{'b': 1, 'a': 2}", "7")
    cases = [f"{value} | {name}" for name in sorted(FILTERS) for value in values]
    cases += [
        "'x'.encode('utf-8')",
        "'<b>' | escape | striptags",
        "range(3) | map('string') | list",
    ]
    source = "".join(
        f"{{% if n == {n} %}}{{{{ {case} }}}}{{% endif %}}" for n, case in enumerate(cases)
    )
    kept, here = made(source), caged.Renderer(source)
    same = 0
    for n, case in enumerate(cases):
        request = {"variables": {"n": n}, "now": "2026-01-02T03:04:05", "characters": 9999}
        pair = [kept.render({"n": n}), here.render(request)]
        kinds, texts = zip(*pair, strict=True)
        assert kinds[0] == kinds[1], (case, pair)
        same += kinds[0] == "text"
        if "random" not in case:
            assert len({re.sub("0x[0-9a-f]+", "", text) for text in texts}) == 1, (case, pair)
    assert same > len(FILTERS)


def test_names_and_strings_of_any_letters() -> None:
    assert made("{% set größe = '\\u00e9' %}{{ größe }}").render({}) == ("text", "é")


def test_inside_there_is_nothing_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's code that gets out of the sandbox finds itself in an empty room."""
    program = """
import caged, json, os, resource, subprocess, socket, sys
class Escaped(caged.Renderer):
    def render(self, asked):
        if "seconds" not in asked:  # while it warms up
            return super().render(asked)
        said = {"environment": sorted(os.environ), "cwd": os.getcwd(), "fds": []}
        for number in range(3, 99):
            try:
                os.fstat(number)
                said["fds"].append(number)
            except OSError:
                pass
        for name, act in {
            "file": lambda: open(sys.executable), "socket": socket.socket, "pipe": os.pipe,
        }.items():
            try:
                act()
                said[name] = "open"
            except OSError as error:
                said[name] = error.errno
        for name in ("CORE", "FSIZE", "NPROC", "NOFILE"):
            said[name] = resource.getrlimit(getattr(resource, "RLIMIT_" + name))
        return "text", json.dumps(said)
caged.Renderer = Escaped
"""
    monkeypatch.setattr(cage, "_PROGRAM", cage._PROGRAM.replace("import caged; ", program))
    kind, text = made("").render({})
    assert kind == "text"
    said = json.loads(text)
    assert set(said["environment"]) <= {*cage._INHERITED, "LC_CTYPE"} and said["cwd"] == "/"
    assert said["fds"] == []
    assert said["file"] == said["socket"] == said["pipe"] == errno.EMFILE
    assert all(said[name] == [0, 0] for name in ("CORE", "FSIZE", "NPROC", "NOFILE"))


def test_one_that_was_killed_is_replaced() -> None:
    kept = made("{{ x }}")
    assert kept.render({"x": 1}) == ("text", "1")
    first = number(kept)
    os.kill(first, signal.SIGKILL)
    assert kept.render({"x": 2}) == ("text", "2")
    assert number(kept) != first


def test_one_that_dies_at_work_is_told_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = """
class Crashing(caged.Renderer):
    def render(self, asked):
        if asked["variables"].get("crash"):
            os.kill(os.getpid(), 9)
        return super().render(asked)
import os
caged.Renderer = Crashing
caged.main()
"""
    monkeypatch.setattr(cage, "_PROGRAM", cage._PROGRAM.replace("; caged.main()", crash))
    kept = made("ok")
    assert kept.render({}) == ("text", "ok")
    # It is asked twice: a first death may be that of one which was killed while it waited.
    assert kept.render({"crash": True}) == ("stopped", "the end of its process by signal 9")
    assert kept.render({}) == ("text", "ok")


def test_processor_time_counts_and_not_the_clock() -> None:
    kept = made("{% if x %}" + ENDLESS + "{% endif %}ok", seconds=0.3)
    assert kept.render({}) == ("text", "ok")
    held = number(kept)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(kept.render({"x": 1})))
    os.kill(held, signal.SIGSTOP)  # a machine too busy to run it at all
    asking.start()
    time.sleep(1.0)
    assert asking.is_alive() and not answers
    os.kill(held, signal.SIGCONT)
    asking.join()
    assert answers == [("stopped", "0.3 seconds of processor time")]


def test_a_long_history_has_longer() -> None:
    """Templates that look over all messages at each of them take the square of their number."""
    said = made(ENDLESS, seconds=0.1).render({"messages": [0] * 200})
    assert said == ("stopped", "0.5 seconds of processor time")
    said = made(ENDLESS, seconds=0.1).render({"messages": ["a" * 100_000]})
    assert said == ("stopped", "0.9 seconds of processor time")


def test_ctrl_c_while_it_works() -> None:
    kept = made("{% if x %}" + ENDLESS + "{% endif %}ok", seconds=600)
    assert kept.render({}) == ("text", "ok")
    first = number(kept)
    main = threading.main_thread().ident
    assert main is not None and os.getpgid(first) != os.getpgid(0)  # a terminal's Ctrl-C is ours
    threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        kept.render({"x": 1})
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert kept.render({}) == ("text", "ok")


def test_threads_have_answers_of_their_own() -> None:
    kept = made("{{ x }}{% for i in range(200) %}{{ i }}{% endfor %}")
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda n: kept.render({"x": f"<{n}>"}), range(60)))
    assert all(text.startswith(f"<{n}>0123") for n, (_, text) in enumerate(said))
    assert len(kept._idle) <= cage._KEPT


FORKS = """
import os, sys
from diffusiongemma.dialog import cage
kept = cage.Cage("{{ x }}", cage.Limits())
print(kept.render({"x": "before"})[1], flush=True)
(process,) = kept._idle
inherited = process._popen.stdin.fileno()
child = os.fork()
if child == 0:
    try:
        os.fstat(inherited)
        print("held")
    except OSError:
        print("let-go")
    print(kept.render({"x": "child"})[1], kept._idle[0]._popen.pid != process._popen.pid)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print(kept.render({"x": "after"})[1], kept._idle == [process])
"""


def test_a_fork_starts_its_own() -> None:
    assert run(FORKS) == ["before", "let-go", "child", "True", "after", "True"]


LEAVES = """
import os, signal, sys
from diffusiongemma.dialog.template import Template
template = Template("{{ x }}")
template.render({"x": 1})
print(template._cage._idle[0]._popen.pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_it_goes_with_the_process_that_started_it(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEAVES, how],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stderr == "" and done.returncode == (0 if how == "ends" else -signal.SIGKILL)
    pid = int(done.stdout)
    while exists(pid):
        time.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_goes_with_its_cage() -> None:
    kept = made("x")
    kept.render({})
    held = number(kept)
    del kept
    assert not exists(held)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has started none yet."""
    monkeypatch.setattr(cage, "_Found", type("_Found", (), {"works": False, "reason": ""}))


def test_without_a_python_to_start(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/webserver")
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    why = f"there is no Python at '/usr/sbin/webserver' or '{tmp_path}/bin/python3'"
    assert cage.place() == f"in this process, without limits: {why}"
    kept = made("{{ x }}")
    assert [kept.render({"x": n}) for n in range(3)] == [
        ("text", "0"),
        ("text", "1"),
        ("text", "2"),
    ]
    assert kept.compile() == ("ready", "") and made("{{").compile()[0] == "syntax"
    assert made("{{ 'a' * 999999 }}").render({}) == ("stopped", "262176 characters")
    assert caplog.messages == [f"chat templates run without limits of time and memory: {why}"]


def test_an_embedded_python_has_one_beside_its_library(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Path(sys.exec_prefix) / "bin" / "python3"
    if not python.is_file():
        pytest.skip(f"this installation has no {python}")
    monkeypatch.setattr(sys, "executable", "")
    assert cage.place() == "in a process of their own, limited in memory and time"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("#!/bin/sh\nexit 3\n", "ends at once (status 3)"),
        ("#!/nowhere/at/all\n", "does not start (No such file or directory)"),
    ],
)
def test_a_python_that_is_none(
    content: str, why: str, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python3"
    python.write_text(content)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert cage.place() == f"in this process, without limits: '{python}' {why}"


def test_one_that_is_killed_as_it_starts(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without memory may do so now and not later: no reason to go without limits."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with pytest.raises(DeviceError, match=r"was ended by signal 9 as it started.*Try again"):
            made("x").render({})
    assert made("x").render({}) == ("text", "x")


def test_a_packed_program(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "packed, and has no Python beside it" in cage.place()


def test_what_was_once_caged_is_never_let_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made("x")
    assert kept.render({}) == ("text", "x")
    kept._idle.clear()
    monkeypatch.setattr(sys, "executable", "/usr/sbin/webserver")
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    with pytest.raises(DeviceError, match=r"no longer starts .there is no Python.*Start this"):
        kept.render({})


def test_a_system_that_refuses_for_now(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(
            DeviceError, match=r"cannot be started .Resource temporarily.*try again"
        ):
            made("x").render({})
    assert made("x").render({}) == ("text", "x")


@pytest.mark.parametrize("kept", [{"memory"}, {"time"}, set()])
def test_a_system_without_a_limit_says_so(kept: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"caged._lock = lambda megabytes: {sorted(kept)}; caged.main()"
    monkeypatch.setattr(cage, "_PROGRAM", cage._PROGRAM.replace("caged.main()", said))
    lacking = {"memory", "time"} - kept
    place = cage.place()
    assert place.startswith("in a process of their own; this system does not limit its ")
    assert all(word in place for word in lacking)
    assert len(lacking) == 2 or not any(word in place for word in kept)


@pytest.mark.parametrize(
    "said",
    ["b'\\0'", "b'\\xff' * 99", "b'\\0\\0\\0\\2{}'", "b'\\0\\0\\0\\5[[],1'", "b'\\0\\0\\0\\0'"],
)
def test_what_comes_from_inside_is_not_believed(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made("x")
    assert kept.render({}) == ("text", "x")
    liar = f"""
import os
send, sent = caged._send, []
def lie(answer):
    sent.append(answer)
    if len(sent) == 3:  # after the greeting, and the word that the template is compiled
        os.write(1, {said})
        os._exit(0)
    send(answer)
caged._send = lie
caged.main()
"""
    monkeypatch.setattr(cage, "_PROGRAM", cage._PROGRAM.replace("; caged.main()", liar))
    assert made("x").render({})[0] == "stopped"
