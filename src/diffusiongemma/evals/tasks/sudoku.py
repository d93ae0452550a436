"""Sudoku of any square size, with exactly one solution each."""

import math
import random
from collections.abc import Sequence

from diffusiongemma.evals.task import Problem

Grid = list[int]  # row by row; 0 is blank


class Sudoku:
    """`Sudoku: 1..4 ..2. .1.. 4..1`, answered row by row."""

    unseen: tuple[str, ...] = ()

    def __init__(self, size: int, clues: tuple[int, int]) -> None:
        """Puzzles of size x size.

        Args:
            size: 4 or 9.
            clues: least and most cells that are given; each number of them is a shape.
        """
        self.size, self.clues = size, clues
        self.box = math.isqrt(size)
        self.name = f"sudoku{size}x{size}"
        self._given = {f"{count} clues": count for count in range(clues[0], clues[1] + 1)}
        self.shapes = tuple(self._given)
        self._peers = [self._peers_of(cell) for cell in range(size * size)]

    def make(self, shape: str, dice: random.Random) -> Problem:
        """Cells are taken from a full grid while the solution stays the only one."""
        wanted = self._given[shape]
        while True:
            full = self._full(dice)
            puzzle = self._thinned(full, wanted, dice)
            if sum(1 for digit in puzzle if digit) == wanted:
                return Problem(f"Sudoku: {self._shown(puzzle)}", self._shown(full), shape)

    def _thinned(self, full: Grid, wanted: int, dice: random.Random) -> Grid:
        puzzle, left = list(full), len(full)
        for cell in dice.sample(range(len(full)), len(full)):
            if left == wanted:
                break
            digit, puzzle[cell] = puzzle[cell], 0
            if self.solutions(puzzle, 2) > 1:
                puzzle[cell] = digit
            else:
                left -= 1
        return puzzle

    def right(self, problem: Problem, text: str) -> bool:
        """The solution, which is unique."""
        return text.split() == problem.answer.split()

    def solutions(self, puzzle: Sequence[int], most: int) -> int:
        """How many solutions a puzzle has, counted up to `most`."""
        return self._search(list(puzzle), most, None)

    def _search(self, grid: Grid, most: int, dice: random.Random | None) -> int:
        """Fill the blank with the fewest choices first; leaves the grid solved if `most` is 1."""
        best: tuple[int, list[int]] | None = None
        for cell, digit in enumerate(grid):
            if digit:
                continue
            taken = {grid[peer] for peer in self._peers[cell]}
            choices = [d for d in range(1, self.size + 1) if d not in taken]
            if best is None or len(choices) < len(best[1]):
                best = (cell, choices)
        if best is None:
            return 1
        cell, choices = best
        if dice is not None:
            dice.shuffle(choices)
        found = 0
        for digit in choices:
            grid[cell] = digit
            found += self._search(grid, most - found, dice)
            if found >= most:
                return found
        grid[cell] = 0
        return found

    def _full(self, dice: random.Random) -> Grid:
        grid = [0] * (self.size * self.size)
        self._search(grid, 1, dice)
        return grid

    def _peers_of(self, cell: int) -> list[int]:
        row, column = divmod(cell, self.size)
        box = (row // self.box, column // self.box)
        return [
            other
            for other in range(self.size * self.size)
            if other != cell
            and (
                other // self.size == row
                or other % self.size == column
                or (other // self.size // self.box, other % self.size // self.box) == box
            )
        ]

    def _shown(self, grid: Grid) -> str:
        marks = "".join(str(digit) if digit else "." for digit in grid)
        return " ".join(marks[n : n + self.size] for n in range(0, len(marks), self.size))
