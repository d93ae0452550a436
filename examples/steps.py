"""Look into every step, and meddle: doubt as it falls, and a canvas turned around half-way.

python examples/steps.py [FOLDER]
"""

import sys

import diffusiongemma as dg

PROMPT = "Sort: 31 13 33 11 3 1 30 10"
gemma = dg.load(*sys.argv[1:2])


def watched(meddle_at):
    """Of the first canvas: each step's doubt and accepted tokens, and what it says in the end."""
    seen = []
    for step in gemma.steps(PROMPT, seed=7, max_new_tokens=32):
        seen.append((step.readout.entropy_BL.mean().item(), step.step.accepted_BL.sum().item()))
        if step.last:
            return seen, step.step.best_BL[0].tolist()
        if step.number == meddle_at:  # the next step sees the canvas backwards
            step.replace(step.step.canvas_BL.flip(-1))


left, said = watched(None)
turned, said_then = watched(1)
print(f"{PROMPT}\nstep   nats a token, accepted   the same after step 1 was turned around")
for number in range(max(len(left), len(turned))):
    cells = [f"{run[number][0]:.3f} {run[number][1]:4}" for run in (left, turned) if run[number:]]
    print(f"{number + 1:4}   {'                  '.join(cells)}")
same = sum(a == b for a, b in zip(said, said_then, strict=True))
print(f"the last canvases agree in {same} of {len(said)} tokens")
