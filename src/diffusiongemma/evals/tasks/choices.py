"""Choosing among what the prompt offers: by the option itself, or by its letter."""

import random

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.arithmetic import number
from diffusiongemma.evals.tasks.words import Phrasings, word

LARGER = Phrasings(
    ("Which is larger: {o}?", "Which is bigger: {o}?", "Larger: {o}", "Pick the larger: {o}"),
    ("Choose the larger one: {o}",),
)
EVEN = Phrasings(
    ("Is {n} even?", "Even: {n}?", "Is {n} an even number?", "{n} is even, yes or no?"),
    ("Is the number {n} even?",),
)
LISTED = Phrasings(
    (
        *("List: {l}. Which is in it: {o}?", "Which is in the list {l}: {o}?"),
        "Given {l}, which of these is there: {o}?",
    ),
    ("Look at {l}. Which of them is in it: {o}?",),
)
_UNSEEN = "an unseen phrasing"


class Choices:
    """`Which is larger: 17 or 71?`; by letter: `Which is larger: A) 17 B) 71?`."""

    name = "choices"

    def __init__(self) -> None:
        """Three questions, two ways to answer."""
        kinds = [f"larger, {digits} digits" for digits in (1, 2, 3, 4)]
        kinds += [f"even, {digits} digits" for digits in (1, 2, 3, 4)]
        kinds += [f"listed, {count} words" for count in (3, 5)]
        self.shapes = tuple(f"{kind}, {way}" for way in ("text", "letter") for kind in kinds)
        self.unseen = (_UNSEEN,)

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A question with its options."""
        unseen = shape == _UNSEEN
        kind, size, way = (dice.choice(self.shapes) if unseen else shape).split(", ")
        count = int(size.split()[0])
        make = {"larger": self._larger, "even": self._even, "listed": self._listed}[kind]
        phrasings, words, options, right, key = make(count, dice)
        template = phrasings.draw(dice, unseen=unseen)
        if way == "letter":
            letters = [chr(ord("A") + n) for n in range(len(options))]
            offered = " ".join(f"{x}) {o}" for x, o in zip(letters, options, strict=True))
            asked = template.format(o=offered, **words)
            asked += "" if "{o}" in template else f" {offered}"
            return Problem(asked, letters[options.index(right)], shape, key=key)
        offered = f"{', '.join(options[:-1])} or {options[-1]}"
        return Problem(template.format(o=offered, **words), right, shape, key=key)

    def right(self, problem: Problem, text: str) -> bool:
        """The option, or its letter."""
        return text.strip() == problem.answer

    def _larger(self, digits: int, dice: random.Random):
        while True:
            one = number(dice, digits)
            # As often close to each other as not.
            other = number(dice, digits) if dice.random() < 0.5 else one + dice.randint(-20, 20)
            if other >= 0 and one != other:
                options = [str(one), str(other)]
                key = f"larger {min(one, other)} {max(one, other)}"
                return LARGER, {}, options, str(max(one, other)), key

    def _even(self, digits: int, dice: random.Random):
        found = number(dice, digits)
        options = ["yes", "no"] if dice.random() < 0.5 else ["no", "yes"]
        return EVEN, {"n": found}, options, "no" if found % 2 else "yes", f"even {found}"

    def _listed(self, count: int, dice: random.Random):
        words: list[str] = []
        while len(words) < count + 2:
            if (made := word(dice, 3, 7)) not in words:
                words.append(made)
        listed, others = words[:count], words[count:]
        right = dice.choice(listed)
        options = [right, *others]
        dice.shuffle(options)
        return LISTED, {"l": " ".join(listed)}, options, right, f"listed {' '.join(sorted(words))}"
