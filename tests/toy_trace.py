"""A trace made by hand, with no model: words that settle by a rule, for whatever draws traces."""

import random
from collections.abc import Sequence

from diffusiongemma.engine.events import Committed, Event, Finished, Refined
from diffusiongemma.engine.reply import Reply, Stats
from diffusiongemma.engine.trace import About, Token, Trace, clean

END = Token("mark", "<turn|>")
NOISE = [
    *(Token("text", word) for word in ("the", " moon", "q", " Zwölf", "\n", "()", " ", "字")),
    *(Token("text", "e\u0301"), Token("mark", "<eos>"), Token("bytes", "E2"), Token("bytes", "9C")),
]  # fmt: skip


def settle(
    canvases: Sequence[Sequence[str]], *, steps: int = 6, width: int = 0, prompt: str = "Say it."
) -> Trace:
    """Each canvas becomes these tokens, from left to right and a little by chance.

    Args:
        canvases: their tokens' texts; the last one ends with an end mark.
        steps: of each.
        width: positions of a canvas; what is left over is filled with end marks.
        prompt: to note.
    """
    dice = random.Random(len(canvases) * 1000 + steps)
    table = list(dict.fromkeys([*NOISE, END, *(_word(t) for c in canvases for t in c)]))
    number = {token: n + 5 for n, token in enumerate(table)}
    noisy = [number[token] for token in NOISE]
    events: list[Event] = []
    said: list[int] = []
    for index, texts in enumerate(canvases):
        goal = [number[_word(text)] for text in texts]
        tail = max(width, len(goal) + 1) - len(goal) if index == len(canvases) - 1 else 0
        whole = goal + [number[END]] * tail
        events += _canvas(index, whole, steps, noisy, dice)
        events.append(Committed(canvas=index, tokens=tuple(goal), text="".join(texts)))
        said += goal
    stats = Stats(
        seed=7, prompt_tokens=5, reused_tokens=0, new_tokens=len(said),
        steps=(steps,) * len(canvases), revisions=3, seconds=1.5, loop=False,
    )  # fmt: skip
    text = "".join(text for texts in canvases for text in texts)
    reply = Reply(
        text=text, thought=None, tool_calls=(), tokens=tuple(said), finish_reason="stop",
        stats=stats,
    )  # fmt: skip
    about = About(
        model="toys/settled", prompt=prompt, seed=7, options={"entropy_bound": 0.1},
        device="cpu float32", versions={"diffusiongemma": "0"},
    )  # fmt: skip
    steps_of = [event for event in events if isinstance(event, Refined)]
    used = {n for one in steps_of for ids in (one.before, one.best, one.after) for n in ids}
    tokens = {n: token for token, n in number.items() if n in used}
    return Trace(about=about, events=(*events, Finished(reply=reply)), tokens=tokens)


def _word(text: str) -> Token:
    return Token("text", clean(text))


def _canvas(
    index: int, whole: list[int], steps: int, noisy: list[int], dice: random.Random
) -> list[Event]:
    after = tuple(dice.choice(noisy) for _ in whole)
    best: tuple[int, ...] = ()
    made: list[Event] = []
    due = [dice.uniform(0.1, 0.6) + 0.5 * n / len(whole) for n in range(len(whole))]
    for step in range(1, steps + 1):
        share = 1.2 * step / steps
        before, old = after, best
        sure = [share >= one for one in due]
        best = tuple(w if s or dice.random() < 0.5 else dice.choice(noisy)
                     for w, s in zip(whole, sure, strict=True))  # fmt: skip
        after = tuple(b if s else dice.choice(noisy) for b, s in zip(best, sure, strict=True))
        doubt = (4.0 * max(0.0, one - share) ** 1.2 for one in due)
        made.append(Refined(
            canvas=index, step=step, best=best, entropy=tuple(round(d, 4) for d in doubt),
            accepted=tuple(sure),
            revised=tuple(bool(old) and a != b for a, b in zip(best, old or best, strict=True)),
            temperature=round(0.8 - 0.4 * (step - 1) / steps, 6), before=before, after=after,
        ))  # fmt: skip
    return made
