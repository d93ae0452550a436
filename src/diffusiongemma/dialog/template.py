"""A checkpoint's chat template, and where its folder has it.

Knows the files that a template may lie in and what to say when one fails. Does not know jinja2,
messages or tokens: a template is code from a stranger, so it is compiled and rendered in a cage.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import CheckpointError, DiffusionGemmaError, InputError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.reading import find_json, read_text
from diffusiongemma.dialog.cage import Answer, Cage, Limits

_CONFIG, _ALONE, _MORE = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
_GEMMA_CLASSES = ("GemmaTokenizer", "GemmaTokenizerFast")
_GEMMA_NAMES = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}

SOURCE_LIMIT = 1 << 18
"""Characters of a template; the longest that were met have 20,000."""
NAMES_LIMIT = 1 << 14
"""Characters of special tokens' names, which each prompt brings along; Gemma's have 300."""


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


@functools.lru_cache(maxsize=4)  # each with its idle processes
def _cage(source: str, limits: Limits) -> Cage:
    return Cage(source, limits)


def find_template(path: Path, name: str = "default") -> Template | None:
    """A template of a checkpoint folder, where transformers finds it, or None.

    It lies in a file of its own; in folders of before, in `chat_template.json` or under
    `chat_template` in `tokenizer_config.json`, alone or among several with names.

    Args:
        path: the folder.
        name: `default`, or `tool_use` for the one that a folder may have for prompts with tools.

    Raises:
        CheckpointError: a file is broken, or names several templates and none is the default one.
    """
    file = Path(path) / (_ALONE if name == "default" else f"{_MORE}/{name}.jinja")
    source = read_text(file)
    if source is not None:
        return Template(source, str(file))
    if name != "default" and (Path(path) / _ALONE).exists():
        return None  # the named ones of old files have been replaced, too
    for file in (Path(path) / "chat_template.json", Path(path) / _CONFIG):
        found = (find_json(file) or {}).get("chat_template")
        if found is not None:
            return _named(found, name, file)
    return None


def _named(found: Any, name: str, file: Path) -> Template | None:
    """One template of those that a JSON file holds."""
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if type(one) is dict}
    named = found if isinstance(found, dict) else {"default": found}
    if "default" not in named:
        raise CheckpointError(
            f"{file} names the chat templates {brief(sorted(named))} and none is called "
            f"'default'; put the one to use into {_ALONE}"
        )
    source = named.get(name)
    if source is not None and not isinstance(source, str):
        raise CheckpointError(
            f"chat_template in {file} is {type(source).__name__} and not a text; fetch the file "
            "again"
        )
    return None if source is None else Template(source, f"the chat template in {file}")


def special_names(path: Path) -> dict[str, str]:
    """Special tokens under the names that templates use, such as `bos_token`.

    What the files leave out is as in Gemma's tokenizer class, unless they name another one.

    Raises:
        CheckpointError: a file is broken, or names more than any tokenizer has.
    """
    config = find_json(Path(path) / _CONFIG) or {}
    gemma = config.get("tokenizer_class") in (None, "", *_GEMMA_CLASSES)
    found = dict(_GEMMA_NAMES) if gemma else {}
    for data in (find_json(Path(path) / "special_tokens_map.json") or {}, config):
        extra = data.get("extra_special_tokens")
        for source in (extra if isinstance(extra, dict) else {}, data):
            for key, value in source.items():
                value = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(value, str):
                    found[key] = value
                elif key in _GEMMA_NAMES and value is None:
                    found.pop(key, None)
    size = sum(len(key) + len(value) for key, value in found.items())
    if size > NAMES_LIMIT:
        raise CheckpointError(
            f"the special tokens that {path} names have {size:,} characters, and at most "
            f"{NAMES_LIMIT:,} are taken; fetch its {_CONFIG} again"
        )
    return found
