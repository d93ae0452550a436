"""What a reader sees of a run."""

import io

import diffusiongemma as dg
from diffusiongemma.train.live import Live, samples

LINE = {
    "step": 40, "denoiser": 0.5, "encoder": 1.25, "norm": 0.75, "tokens_per_second": 3400,
    "expert_share": [[0.5, 0.5], [0.969, 0.031]], "left_minutes": 12.5,
}  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def test_elsewhere_a_line_is_a_line() -> None:
    out = io.StringIO()
    with Live(100, out) as live:
        live(LINE)
        live.say("a sample")
    first, second = out.getvalue().splitlines()
    assert second == "a sample" and "\r" not in out.getvalue()
    for part in ("step     40", "denoiser 0.500", "least expert 3.1 %", "3,400", "12.5 min left"):
        assert part in first


def test_on_a_terminal_one_line_moves() -> None:
    out = Terminal()
    with Live(100, out) as live:
        live(LINE)
        live(LINE | {"step": 80, "denoiser": 0.25})
    assert out.getvalue().count("\n") == 1
    last = out.getvalue().rpartition("\r")[2]
    assert "80/100" in last and "denoiser 0.250" in last


def test_samples_show_first_draft_answer_and_verdict() -> None:
    gemma, said = dg.load(), []
    samples(gemma, [("Sort: 3 1 2", lambda text: False)], said.append)
    (line,) = said
    reply = gemma.generate("Sort: 3 1 2", seed=0)
    assert line.startswith("  Sort: 3 1 2  |  ") and f"->  {reply.text}  (" in line
    assert line.endswith(f"({sum(reply.stats.steps)} steps, wrong)")
