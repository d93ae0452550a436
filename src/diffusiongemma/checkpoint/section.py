"""One dictionary of a configuration file, which remembers what was taken from it.

Knows how to ask for a number, one of a few values, or a dictionary inside; what is wrong, what
nobody asked for, and what a copy of the file has to say again. Does not know any key.
"""

from collections.abc import Collection, Mapping
from typing import Any

from diffusiongemma.core.letters import brief

Raw = Mapping[str, Any]

# With this limit a wrong number is named here; without it, it would exhaust the memory.
WIDEST = 1_000_000


class Section:
    """What is wrong goes to `problems`, one list for the whole file, and reads as a number that
    does no harm; so a single error can name everything.
    """

    def __init__(self, prefix: str, raw: Raw, problems: list[str]) -> None:
        self.prefix, self.raw, self.problems = prefix, raw, problems
        self.taken = {"model_type"}
        self.parts: dict[str, Section] = {}

    def complain(self, key: str, what: str) -> None:
        """Note a problem."""
        where = f"{self.prefix}{key}"
        if not where.isprintable() or len(where) > 100:
            where = brief(where)
        self.problems.append(f"{where} {what}")

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key; without a default, its absence is a problem."""
        self.taken.add(key)
        if key not in self.raw and not default:
            self.complain(key, "is missing")
        return self.raw.get(key, *default)

    def whole(self, key: str, *default: Any, least: int = 1, most: int = WIDEST) -> int:
        """A whole number between the limits."""
        value = self.take(key, *default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if key in self.raw:
            wanted = f"must be a whole number from {least} to {most}"
            self.complain(key, f"{wanted}, got {brief(value)}")
        return 1

    def real(self, key: str, *default: Any, most: float = 1e30) -> float:
        """A number above zero."""
        value = self.take(key, *default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 < value <= most:
            return float(value)
        if key in self.raw:
            limit = "" if most == 1e30 else f" and at most {most:g}"
            self.complain(key, f"must be a number above 0{limit}, got {brief(value)}")
        return 1.0

    def one_of(self, key: str, *allowed: Any) -> Any:
        """A value for which there are few choices; the first one if absent."""
        value = self.take(key, allowed[0])
        self.expect(key, *allowed)
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Note it if a key is there with another value; it counts as not taken."""
        value = self.raw.get(key, allowed[0])
        if not any(value is choice or value == choice for choice in allowed):
            wanted = " or ".join(repr(choice) for choice in allowed)
            self.complain(key, f"= {brief(value)}, only {wanted} is built")

    def section(self, key: str, name: str | None = None) -> "Section | None":
        """A dictionary inside this one; None if it is absent or null.

        Args:
            key: its key in the file.
            name: its key in a copy, where that is another.
        """
        value = self.take(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.complain(key, f"must be an object, got {brief(value)}")
            return None
        part = Section(f"{self.prefix}{key}.", value, self.problems)
        self.parts[name or key] = part
        return part

    def close(self, silent: Collection[str], fixed: Mapping[str, tuple[Any, ...]]) -> list[str]:
        """Look at what nobody has taken, here and in the parts.

        Args:
            silent: keys that have no say.
            fixed: keys that must have one of some values.

        Returns:
            keys that are neither, as paths.
        """
        unknown = []
        for key in sorted(set(self.raw) - self.taken - set(silent)):
            if key in fixed:
                self.expect(key, *fixed[key])
            else:
                unknown.append(f"{self.prefix}{key}")
        for part in self.parts.values():
            unknown += part.close(silent, fixed)
        return unknown

    def untaken(self) -> dict[str, Any]:
        """What nobody has taken, parts as objects within this one."""
        left = {key: value for key, value in self.raw.items() if key not in self.taken}
        inside = {name: part.untaken() for name, part in self.parts.items()}
        return left | {name: what for name, what in inside.items() if what}
