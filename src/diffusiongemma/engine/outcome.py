"""What the loop gives, as what is told of it: events, and the sums of an answer.

Events and replies themselves know no tensor, so that a trace can be read without torch.
"""

from collections.abc import Sequence

from diffusiongemma.dialog.reply import Said
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.engine.events import Committed
from diffusiongemma.engine.reply import Stats, repeats


def committed(commit: Commit, said: Said) -> Committed:
    """The event of a finished canvas."""
    return Committed(
        canvas=commit.canvas, tokens=commit.tokens, text=said.text, thought=said.thought
    )


def stats_of(
    commits: Sequence[Commit],
    tokens: Sequence[int],
    *,
    seed: int,
    prompt: int,
    reused: int,
    seconds: float,
) -> Stats:
    """Sum up the canvases of one answer."""
    return Stats(
        seed=seed,
        prompt_tokens=prompt,
        reused_tokens=reused,
        new_tokens=len(tokens),
        steps=tuple(commit.steps for commit in commits),
        revisions=sum(commit.revisions for commit in commits),
        seconds=seconds,
        loop=repeats(tokens),
    )
