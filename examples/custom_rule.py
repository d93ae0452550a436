"""A rule of your own for which tokens a step accepts: those well ahead of the second choice.

python examples/custom_rule.py [FOLDER]
"""

import math
import sys
from dataclasses import dataclass

import diffusiongemma as dg


@dataclass(frozen=True)
class Margin:
    """Accept where the best token is at least `times` as likely as the second."""

    times: float

    def __call__(self, readout):
        first_BL, second_BL = readout.top_logprob_BLG.unbind(-1)
        return first_BL - second_BL >= math.log(self.times)


def steps_of_each_canvas(rule, **options):
    """How long each canvas took."""
    steps = gemma.steps("Sort: 52 7 30 9 11", seed=7, max_new_tokens=32, rule=rule, **options)
    return [step.number for step in steps if step.last]


gemma = dg.load(*sys.argv[1:2])
print("entropy bound:", steps_of_each_canvas(None))
for times in (2, 8, 32):  # the rule reads the two likeliest tokens, so they are asked for
    print(f"margin of {times}:", steps_of_each_canvas(Margin(times), ask=dg.Ask(top=2)))
