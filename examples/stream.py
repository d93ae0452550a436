"""Watch a canvas settle: words that the model is unsure of are dim, committed ones stay.

python examples/stream.py [FOLDER]
"""

import sys

import diffusiongemma as dg

DIM, PLAIN, BACK = "\x1b[2m", "\x1b[0m", "\x1b[H\x1b[J"  # BACK: to the top of a cleared screen
UNSURE = 0.5  # nats

gemma = dg.load(*sys.argv[1:2])
live, done = sys.stdout.isatty(), ""


def draw(tokens, entropies):
    """The draft as text, unsure tokens dimmed."""
    for token, entropy in zip(tokens, entropies, strict=True):
        word = gemma.chat.tokenizer.decode([token])
        yield f"{DIM}{word}{PLAIN}" if entropy > UNSURE else word


for event in gemma.stream("Sort: 52 7 30 9 11", seed=7, max_new_tokens=64):
    match event:
        case dg.Refined() if live:
            print(BACK, done, *draw(event.best, event.entropy), sep="", flush=True)
        case dg.Committed():
            done += event.text
        case dg.Finished(reply=reply):
            print(BACK * live + reply.text)
            print(f"steps of each canvas: {reply.stats.steps}")
