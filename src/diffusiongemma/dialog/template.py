"""A checkpoint's chat template, and where its folder has it.

Knows the files that a template may lie in and what to say when one fails. Does not know jinja2,
messages or tokens: a template is code from a stranger, so it is compiled and rendered in a cage.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import CheckpointError, DiffusionGemmaError, InputError
from diffusiongemma.core.reading import find_json, read_text
from diffusiongemma.dialog.cage import Answer, Cage, Limits

SOURCE_LIMIT = 1 << 18
"""Characters of a template; the longest that were met have 20,000."""


class Template:
    """One template. Its process starts when it is first needed, and serves all of this text.

    Args:
        source: its text.
        name: where it came from, for messages.
        limits: what it may take.

    Raises:
        CheckpointError: its text is too long for one.
    """

    def __init__(
        self, source: str, name: str = "the chat template", limits: Limits | None = None
    ) -> None:
        self.name = name
        if len(source) > SOURCE_LIMIT:
            raise CheckpointError(
                f"{name} has {len(source)} characters, and at most {SOURCE_LIMIT} are taken for a "
                "template; fetch the file again"
            )
        self._cage = _cage(source, limits or Limits())

    def check(self) -> None:
        """Compile it, as the first rendering does.

        Raises:
            CheckpointError: it is not a template.
            DeviceError: the system refuses one more process.
        """
        answer = self._cage.compile()
        if answer[0] != "ready":
            raise self._error(answer)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which are JSON values.

        Raises:
            InputError: the template refuses them, or fails on them.
            CheckpointError: it is not a template, tries what the sandbox forbids, or takes more
                time or memory than any that were met.
            DeviceError: the system refuses one more process.
        """
        try:
            answer = self._cage.render(variables)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the messages cannot be written as JSON ({error}); use shorter numbers and flat "
                "lists"
            ) from error
        if answer[0] == "text":
            return answer[1]
        raise self._error(answer)

    def _error(self, answer: Answer) -> DiffusionGemmaError:
        kind, why = answer
        match kind:
            case "syntax":
                return CheckpointError(
                    f"{self.name} is not a jinja template ({why}); fetch the file again"
                )
            case "broken":
                return CheckpointError(
                    f"{self.name} cannot be compiled ({why}); fetch the file again"
                )
            case "forbidden":
                return CheckpointError(
                    f"{self.name} tries what a template may not ({why}); do not use this "
                    "checkpoint unless you trust its source"
                )
            case "refused":
                return InputError(f"{self.name} refuses these messages: {why}")
            case "stopped":
                return CheckpointError(
                    f"{self.name} was stopped at {why}; check the template, or shorten the messages"
                )
        return InputError(
            f"{self.name} fails on these messages ({why}); check their roles and parts"
        )


@functools.lru_cache(maxsize=8)
def _cage(source: str, limits: Limits) -> Cage:
    return Cage(source, limits)


def find_template(path: Path) -> Template | None:
    """The template of a checkpoint folder, or None.

    Of several named templates in `tokenizer_config.json`, the one called `default`.
    """
    file = Path(path) / "chat_template.jinja"
    source = read_text(file)
    if source is not None:
        return Template(source, str(file))
    file = Path(path) / "tokenizer_config.json"
    found = (find_json(file) or {}).get("chat_template")
    if found is None:
        return None
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        if "default" not in named:
            raise CheckpointError(
                f"{file} names the chat templates {sorted(map(str, named))} and none is called "
                "'default'; put the one to use into chat_template.jinja"
            )
        found = named["default"]
    if not isinstance(found, str):
        raise CheckpointError(
            f"chat_template in {file} is {type(found).__name__} and not a text; fetch the file "
            "again"
        )
    return Template(found, f"the chat template in {file}")


def special_names(path: Path) -> dict[str, str]:
    """Special tokens under the names that templates use, such as `bos_token`."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data = find_json(Path(path) / name) or {}
        extra = data.get("extra_special_tokens")
        for source in (extra if isinstance(extra, dict) else {}, data):
            for key, value in source.items():
                value = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(value, str):
                    found[key] = value
    return found
