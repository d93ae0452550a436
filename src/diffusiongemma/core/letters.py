"""Letters that do more than be read, and texts without them: one list for all that is shown.

What comes from a file, a model or a network can hold letters that steer a terminal, turn the order
of their neighbours around, or end a line where no reader sees it. Knows letters, and nothing of who
shows them.
"""

import re
import unicodedata

LONGEST = 4000  # letters of an error's message: names of all the tensors that a file lacks fit
BRIEF = 60  # letters of a value within one
QUOTED = 300  # letters of what others' code says within one
MASK = "\N{MIDDLE DOT}"

# Controls but tab and newline; Unicode's Bidi_Control, which reorders; line ends that only some
# programs see; halves of letters, which cannot be written out.
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LINE_ENDS = re.compile(" *[\t-\r\x1c-\x1e\x85\u2028\u2029]\\s*")
_SHAPELESS = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # controls, formats, what has no shape


def printable(text: str) -> str:
    """A text that cannot steer a terminal, nor turn itself around: such letters become a mark."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def visible(text: str, keep: str = "") -> str:
    """A text in which every letter shows, those without a shape as a dot.

    Args:
        text: any.
        keep: letters that stay as they are.
    """
    return "".join(
        MASK if letter not in keep and unicodedata.category(letter) in _SHAPELESS else letter
        for letter in text
    )


def sentence(text: str) -> str:
    """A text as one line of at most `LONGEST` letters that can be shown anywhere.

    Of a longer one the middle is left out: what is wrong stands at the beginning, what to do at the
    end.
    """
    return printable(_LINE_ENDS.sub(" ", cut(text.strip(), LONGEST)))


def brief(value: object, most: int = BRIEF) -> str:
    """A value as an error quotes it: Python's spelling, without its middle where that is long."""
    try:
        return cut(repr(value), most)
    except Exception:  # a number of 5,000 digits has no spelling, an object may have none either
        return f"a value of type {type(value).__name__}"


def reason(error: BaseException) -> str:
    """What others' code raised, as an error quotes it: its kind, and what it says first."""
    return f"{type(error).__name__}: {first_line(str(error))}".rstrip(". :")


def first_line(text: str) -> str:
    """The first line of what others' code says, short."""
    return cut("".join(text.strip().splitlines()[:1]), QUOTED)


def cut(text: str, most: int) -> str:
    """A text of at most so many letters: the middle of a longer one is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}"
