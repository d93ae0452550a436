"""A rule of your own for which tokens a step accepts: those well ahead of the second choice.

python examples/custom_rule.py [FOLDER]
"""

import math
import sys
from dataclasses import dataclass

import diffusiongemma as dg

PROMPTS = ["Sort: 8 41 3 25 9 61 7 2", "Sudoku: .2.. ...4 .3.. 1...", "What is 1003 - 847?"]


@dataclass(frozen=True)
class Margin:
    """Accept where the best token is at least `times` as likely as the second."""

    times: float
    needs = dg.Ask(top=2)  # it reads the two likeliest tokens

    def __call__(self, readout):
        first_BL, second_BL = readout.top_logprob_BLG.unbind(-1)
        return first_BL - second_BL >= math.log(self.times)


def steps(prompt, rule):
    """How many steps the first canvas takes."""
    reply = gemma.generate(prompt, seed=7, max_new_tokens=32, rule=rule)
    return reply.stats.steps[0]


gemma = dg.load(*sys.argv[1:2])
print("steps of:", ", ".join(PROMPTS))
for rule in (None, dg.EntropyBound(3.0), Margin(2), Margin(8), Margin(1000)):
    counts = [steps(prompt, rule) for prompt in PROMPTS]
    print(f"{rule or 'the checkpoint, its own'}: {counts}")
