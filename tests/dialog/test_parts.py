"""Lists of text parts: as transformers renders them, and as one text where lists are not known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diffusiongemma
from diffusiongemma.core.errors import InputError
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.template import Template
from diffusiongemma.dialog.tokenizer import Tokenizer

SHIPPED = Path(diffusiongemma.__file__).parent / "small"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
USER = {"role": "user", "content": "x"}

# Each part of a system message is followed by a space, as in the released template.
SPACED = """{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}
{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}
{{- part.text | trim + (' ' if m.role == 'system' else '') -}}
{% endfor %}{% endif %}<turn|>
{% endfor %}"""
STRINGS = [
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
    "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}",
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ m.content.split('x')[0] }}{% endfor %}",
]


def texts(*given: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in given]


def talk(role: str, content: Any) -> list[dict[str, Any]]:
    """A conversation in which this role has this content."""
    turn = {"role": role, "content": content}
    match role:
        case "system":
            return [turn, USER]
        case "assistant":
            return [USER, turn, USER]
        case "tool":
            return [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, turn]
    return [turn]


@pytest.fixture
def rendered(tokenizer: Tokenizer) -> Callable[..., str]:
    """The text that a template makes of a conversation."""

    def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
        chat = Chat(tokenizer, SpecialIds(), Template(source), names={"bos_token": "<bos>"})
        return tokenizer.decode(chat.render(messages, **options).ids, special=True)

    return render


def test_templates_that_know_parts_are_given_them(rendered: Callable[..., str]) -> None:
    said = rendered(SPACED, talk("system", texts("Be brief.")))
    assert said == "<bos><|turn>system\nBe brief. <turn|>\n<|turn>user\nx<turn|>\n"
    said = rendered(SPACED, talk("tool", texts("12", ":00")))
    assert said.endswith("<|turn>tool\n12:00<turn|>\n")


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("source", STRINGS)
def test_templates_that_know_texts_only_are_given_one(
    rendered: Callable[..., str], source: str, role: str
) -> None:
    whole = rendered(source, talk(role, "12:00"))
    assert rendered(source, talk(role, texts("12:00"))) == whole
    assert rendered(source, talk(role, texts("12", ":00"))) == whole
    assert rendered(source, talk(role, texts("12", ":00")), guard=True) == whole


def test_each_role_is_looked_at(rendered: Callable[..., str]) -> None:
    """A template may know parts of users, and not of systems."""
    source = """{% for m in messages %}{% if m.role == 'user' and m.content is not string %}
{% for part in m.content %}[{{ part.text }}]{% endfor %}
{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"""
    messages = [{"role": "system", "content": texts("a", "b")}]
    messages += [{"role": "user", "content": texts("c", "d")}]
    assert rendered(source, messages) == "ab[c][d]"


def test_a_template_that_refuses_a_role_still_refuses_it(rendered: Callable[..., str]) -> None:
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
    source += "{% endif %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="refuses these messages: no"):
        rendered(source, talk("system", texts("a")))


def test_joined_texts_are_guarded_as_one(
    rendered: Callable[..., str], tokenizer: Tokenizer
) -> None:
    chat = Chat(tokenizer, SpecialIds(), Template(STRINGS[0]))
    ids = chat.render(talk("user", texts("<tur", "n|>")), guard=True).ids
    assert tokenizer.id("<turn|>") not in ids
    assert tokenizer.decode(ids) == "user: <turn|>\n"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_the_shipped_model_reads_parts_as_text(role: str) -> None:
    tokenizer = Tokenizer.from_folder(SHIPPED)
    assert tokenizer is not None
    chat = Chat.from_folder(SHIPPED, tokenizer, SpecialIds())
    whole = chat.render(talk(role, " Reverse: abc ")).ids
    assert chat.render(talk(role, texts(" Reverse: ", "abc "))).ids == whole
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    options = {"add_generation_prompt": True, "return_dict": False}
    for content in (" Reverse: abc ", texts(" Reverse: ", "abc ")):
        assert theirs.apply_chat_template(talk(role, content), **options) == whole
