"""A calculator that is declared in the prompt: called when it is needed, its result answered."""

import random
from collections.abc import Mapping
from typing import Any

from diffusiongemma.evals.task import Problem, Task, Use
from diffusiongemma.evals.tasks.arithmetic import number
from diffusiongemma.evals.tasks.words import Phrasings, word

ASKED = Phrasings(
    ("What is {a} {o} {b}?", "{a} {o} {b} =", "Compute {a} {o} {b}.", "How much is {a} {o} {b}?"),
    ("Work out {a} {o} {b}.",),
)
# A tool and its parameter, as programs name them.
NAMES = (("calculator", "expression"), ("calculate", "formula"), ("eval_math", "expr"))
_UNSEEN = "an unseen phrasing"
_IDLE = "not needed"


def declared(name: str, parameter: str) -> Mapping[str, Any]:
    """A calculator's declaration, in OpenAI's shape."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "Reckons.",
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string"}},
                "required": [parameter],
            },
        },
    }


class Calling:
    """`What is 48213 * 977?` with a calculator; the answer is what it said.

    Names of the tool and of its parameter are sometimes of no list, so that they have to be read.
    """

    name = "tool call"

    def __init__(self, idle: tuple[Task, ...], phrasings: Phrasings = ASKED) -> None:
        """Args:
        idle: tasks that are asked beside a calculator and need none.
        phrasings: of the others.
        """
        self.idle, self.phrasings = idle, phrasings
        self.kinds = {
            f"{one} {sign} {other} digits": (one, sign, other)
            for sign in "+-*"
            for one, other in ((3, 3), (5, 3), (4, 6), (6, 6))
        }
        self.shapes = (*self.kinds, _IDLE)
        self.unseen = (_UNSEEN,)

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A question, the call that it wants, and what comes of it."""
        name, parameter = dice.choice(NAMES)
        if dice.random() < 0.3:
            name, parameter = word(dice, 3, 9), word(dice, 3, 9)
        declaration = declared(name, parameter)
        if shape == _IDLE:
            task = dice.choice(self.idle)
            asked = task.make(dice.choice(task.shapes), dice)
            return Problem(asked.prompt, asked.answer, shape, key=asked.key, spare=declaration)
        unseen = shape == _UNSEEN
        one, sign, other = dice.choice(list(self.kinds.values())) if unseen else self.kinds[shape]
        a, b = number(dice, one), number(dice, other)
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        use = Use(
            declaration=declaration, arguments={parameter: f"{a} {sign} {b}"}, result=str(value)
        )
        asked = self.phrasings.draw(dice, unseen=unseen).format(a=a, o=sign, b=b)
        return Problem(asked, str(value), shape, key=f"{a} {sign} {b}", tool=use)

    def right(self, problem: Problem, text: str) -> bool:
        """What the tool said, and nothing else."""
        return text.strip() == problem.answer
