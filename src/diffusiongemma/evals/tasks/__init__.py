"""Tasks that the project makes itself, each scored exactly."""

from diffusiongemma.evals.task import Task
from diffusiongemma.evals.tasks.arithmetic import Addition, Subtraction
from diffusiongemma.evals.tasks.records import Extraction, Repair
from diffusiongemma.evals.tasks.sequences import Reversing, Sorting
from diffusiongemma.evals.tasks.sudoku import Sudoku

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(Addition(), Subtraction(), Sorting(), Reversing(), Extraction(), Repair()),
        Sudoku(size=4, clues=(6, 12)),
    )
}
"""Every task by name."""
