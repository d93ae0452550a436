"""Other processes make what steps learn from: in order, the same whoever makes it, and they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ahead_made import Failing, Marked
from cli_help import ENVIRONMENT, ROOT
from diffusiongemma.core.errors import DeviceError, InputError
from diffusiongemma.train.ahead import Ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_their_numbers(workers: int, tmp_path: Path) -> None:
    with Ahead(Marked(tmp_path), workers) as ahead:
        assert [ahead(number)[0] for number in range(5, 15)] == list(range(5, 15))
        makers = {ahead(number)[1] for number in range(15, 15 + 2 * max(workers, 1))}
        assert len(makers) == max(workers, 1)
        assert (os.getpid() in makers) is (workers == 0)
        # Another place, as of a run that goes on from a checkpoint.
        assert ahead(100)[0] == 100 and ahead(101)[0] == 101


def test_nobody_runs_far_ahead(tmp_path: Path) -> None:
    """Results larger than a pipe: each process holds one, and no more are made."""
    with Ahead(Marked(tmp_path, size=1 << 20), 2) as ahead:
        ahead(0)
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_what_cannot_be_made_says_why() -> None:
    with Ahead(Failing(), 2) as ahead:
        assert ahead(0) == 0
        with pytest.raises(InputError, match="step 1 learns from cannot be made: ValueError: odd"):
            ahead(1)


def test_a_process_that_is_killed_is_noticed(tmp_path: Path) -> None:
    with Ahead(Marked(tmp_path), 1) as ahead:
        maker = ahead(0)[1]
        os.kill(maker, signal.SIGKILL)
        with pytest.raises(DeviceError, match="ended before step"):
            for number in range(1, 10_000):
                ahead(number)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_processes_end_with_the_one_that_reads(how: str, tmp_path: Path) -> None:
    """Killed, or told to end together with them, as by Ctrl-C on a terminal."""
    script = "import sys; from pathlib import Path; from ahead_made import read; read(sys.argv[1])"
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=ENVIRONMENT | {"PYTHONPATH": path}, start_new_session=True, stdout=subprocess.PIPE,
        text=True,
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        makers = [int(word) for word in reader.stdout.readline().split()]
        assert len(makers) == 2
        number = getattr(signal, how)
        if how == "SIGKILL":
            reader.send_signal(number)
        else:
            os.killpg(reader.pid, number)
            assert "went on, then ended" in reader.stdout.read()
        assert reader.wait(60) == (-number if how == "SIGKILL" else 0)
    deadline = time.monotonic() + 60
    while any(_lives(maker) for maker in makers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(maker) for maker in makers)


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
