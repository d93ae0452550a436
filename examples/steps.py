"""Look into every step, and meddle: entropies as they fall, and a canvas replaced half-way.

python examples/steps.py [FOLDER]
"""

import sys

import diffusiongemma as dg

gemma = dg.load(*sys.argv[1:2])
options = {"seed": 7, "max_new_tokens": 16, "max_denoising_steps": 12}


def final(meddle):
    """The most likely canvas after the last step of the first canvas."""
    for step in gemma.steps("Sort: 52 7 30 9 11", **options):
        meddle(step)
        if step.last:
            return step.step.best_BL[0].tolist()


def report(step):
    """One line a step."""
    entropy, kept = step.readout.entropy_BL.mean(), step.step.accepted_BL.sum()
    print(f"step {step.number:2}: {entropy:.3f} nats a token, {kept} accepted")


def turn_around(step):
    """After step 4, hand the model its own canvas backwards."""
    if step.number == 4:
        step.replace(step.step.canvas_BL.flip(-1))


left, changed = final(report), final(turn_around)
same = sum(a == b for a, b in zip(left, changed, strict=True))
print(f"{same} of {len(left)} tokens are the same after the canvas was turned around")
