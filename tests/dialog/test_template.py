"""Chat templates: their dialect, their sandbox, where they are found."""

import json
from pathlib import Path

import pytest

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.dialog.template import Template, find_template, special_names


def render(source: str, **variables: object) -> str:
    return Template(source).render(variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{{ 'a' ~ 1 ~ 'b' }}{{ 'ab' * 2 }}{{ 2 ** 3 }}{{ '%02d' % 7 }}", "a1babab807"),
        ("{% for i in [1] recursive %}{{ i }}{% else %}none{% endfor %}", "1"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
    ],
)
def test_dialect_of_transformers(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize("source", ["{% if %}", "{{ a", "{% nonsense %}", "{{ a | nofilter }}"])
def test_not_a_template(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template .*fetch the file again"):
        render(source)


def test_template_refuses() -> None:
    with pytest.raises(InputError, match="refuses these messages: no pigs"):
        render("{{ raise_exception('no pigs') }}")


@pytest.mark.parametrize(
    "source", ["{{ a.b.c }}", "{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"]
)
def test_template_fails(source: str) -> None:
    with pytest.raises(InputError, match=r"fails on these messages .*check their roles"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ strftime_now.__self__.x }}",
        "{{ (''|attr('format')).__globals__.x }}",
        "{{ [messages]|map('{0.__class__.__mro__}'.format)|list }}",
        "{{ ('{0.__class__.__mro__}'|attr('format'))(messages) }}",
        "{% set ns = namespace(f='{0.__class__.__mro__}'.format) %}{{ ns.f(messages) }}",
        "{% set ns = namespace(f=''.format) %}{{ ns.f.__globals__.x }}",
        "{{ namespace().__init__.x }}",
        "{{ namespace()._Namespace__attrs.clear() }}",
    ],
)
def test_sandbox(source: str) -> None:
    with pytest.raises((CheckpointError, InputError), match=r"may not|fails on these messages"):
        render(source, messages=[])


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    found = find_template(tmp_path)
    assert found is not None and found.render({}) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    config.write_text(json.dumps({"chat_template": named}))
    found = find_template(tmp_path)
    assert found is not None and found.render({}) == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    found = find_template(tmp_path)
    assert found is not None and found.render({}) == "four"


def test_templates_that_cannot_be_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}))
    with pytest.raises(CheckpointError, match=r"'rag'\] and none is called 'default'; put"):
        find_template(tmp_path)
    names = [{"name": [], "template": "x"}, {"name": {"a": 1}}, 3, *[{"name": "n" * 99}] * 9999]
    config.write_text(json.dumps({"chat_template": names}))
    with pytest.raises(CheckpointError, match=r"none is called 'default'; put") as caught:
        find_template(tmp_path)
    assert len(str(caught.value)) < 500
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(CheckpointError, match="is int and not a text"):
        find_template(tmp_path)
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not valid JSON"):
        find_template(tmp_path)
    config.write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, not an object"):
        find_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is no text in UTF-8"):
        find_template(tmp_path)


def source(folder: Path, name: str = "default") -> str | None:
    found = find_template(folder, name)
    return None if found is None else found.render({})


def test_where_old_templates_are_found(tmp_path: Path) -> None:
    """As transformers does: in its processors' old file, in its tokenizers' settings."""
    config, old = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.json"
    config.write_text(json.dumps({"chat_template": "settings"}))
    assert source(tmp_path) == "settings"
    old.write_text(json.dumps({"chat_template": "old"}))
    assert source(tmp_path) == "old"
    old.write_text(json.dumps({"chat_template": {"default": "named", "tool_use": "tools"}}))
    assert (source(tmp_path), source(tmp_path, "tool_use")) == ("named", "tools")
    old.write_text("{}")
    assert (source(tmp_path), source(tmp_path, "tool_use")) == ("settings", None)
    (tmp_path / "chat_template.jinja").write_text("new")
    assert (source(tmp_path), source(tmp_path, "tool_use")) == ("new", None)


def test_where_templates_for_tools_are_found(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "old"}, {"name": "default", "template": "default"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert (source(tmp_path), source(tmp_path, "tool_use")) == ("default", "old")
    (tmp_path / "chat_template.jinja").write_text("new")
    assert source(tmp_path, "tool_use") is None
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert (source(tmp_path), source(tmp_path, "tool_use")) == ("new", "tools")


def test_special_names(tmp_path: Path) -> None:
    gemma = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}
    assert special_names(tmp_path) == gemma
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "old", "pad_token": "<pad>"}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GemmaTokenizer",
                "bos_token": {"content": "<s>"},
                "eos_token": None,
                "add_bos_token": True,
                "extra_special_tokens": {"boi_token": "<|image>"},
            }
        )
    )
    expected = gemma | {"bos_token": "<s>", "boi_token": "<|image>"}
    del expected["eos_token"]
    assert special_names(tmp_path) == expected
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AnotherTokenizer"}')
    assert special_names(tmp_path) == {"bos_token": "old", "pad_token": "<pad>"}


@pytest.mark.parametrize(
    "names", [{"bos_token": "x" * 20_000}, {f"{n}_token": "" for n in range(2000)}]
)
def test_more_names_than_a_prompt_should_carry(names: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    with pytest.raises(
        CheckpointError, match=r"have \d\d,\d{3} characters, and at most 16,384 are"
    ):
        special_names(tmp_path)
