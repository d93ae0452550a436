"""Tasks that the project makes itself, each scored exactly."""

from diffusiongemma.evals.task import Task
from diffusiongemma.evals.tasks.arithmetic import DIFFERENCES, SUMS, Addition, Subtraction
from diffusiongemma.evals.tasks.choices import Choices
from diffusiongemma.evals.tasks.records import FRAMES, MEND, OUT, Extraction, Repair, listed
from diffusiongemma.evals.tasks.sequences import BACK, UP, Reversing, Sorting
from diffusiongemma.evals.tasks.sudoku import Sudoku
from diffusiongemma.evals.tasks.thinking import Thinking
from diffusiongemma.evals.tasks.tools import Calling
from diffusiongemma.evals.tasks.turns import Turns


def _by_name(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


# What the shipped model was taught: one phrasing each, four sentences, names of a list, sorting
# upwards, small letters.
TASKS: dict[str, Task] = _by_name(
    Addition(SUMS.usual()),
    Subtraction(DIFFERENCES.usual()),
    Sorting(UP.usual(), None),
    Reversing(BACK.usual(), ("letters", "spoken", "few letters")),
    Extraction(OUT.usual(), FRAMES[:4], listed),
    Repair(MEND.usual(), listed),
    Sudoku(size=4, clues=(4, 12)),
)
"""Every task by name."""

_ALL = (Addition(), Subtraction(), Sorting(), Reversing(), Extraction(), Repair())
NEXT: dict[str, Task] = _by_name(
    *_ALL,
    Sudoku(size=4, clues=(4, 12)),
    Thinking(),
    Calling(idle=(Sorting(), Reversing(), Extraction())),
    Choices(),
    Turns(),
)
"""What its successor is taught, see `recipes/second`."""
