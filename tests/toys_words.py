"""A toy tokenizer and chat template, for any test that needs words.

The tokenizer is byte-level with the names of Gemma 4's marks and no merges, so that every text has
a place and every id is easy to say. The template is written from the published description of the
format, in our own words; it is no copy of the one that ships with the model. Like that one, it ends
the prompt within a thought where the model goes on thinking about a tool's answer.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import toys

MARKS = (
    "<pad>", "<eos>", "<bos>", "<unk>",
    "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>",
    "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
    '<|"|>', "<|image>", "<|image|>", "<image|>",
)  # fmt: skip
FIRST_BYTE = 32  # the id of byte 0
SIZE = 300

TEMPLATE = """\
{%- macro value(x) -%}
  {%- if x is string -%}<|"|>{{ x }}<|"|>
  {%- elif x is none -%}null
  {%- elif x is boolean -%}{{ 'true' if x else 'false' }}
  {%- elif x is mapping -%}
    {
    {%- for k, v in x.items() -%}
      {{ k }}:{{ value(v) }}{{ ',' if not loop.last }}
    {%- endfor -%}
    }
  {%- elif x is iterable -%}
    [
    {%- for v in x -%}
      {{ value(v) }}{{ ',' if not loop.last }}
    {%- endfor -%}
    ]
  {%- else -%}{{ x }}
  {%- endif -%}
{%- endmacro -%}
{%- macro words(content) -%}
  {%- if content is string -%}
    {{ content | trim }}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}<|image|>
      {%- elif part.type == 'text' -%}{{ part.text | trim }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro spoken(text) -%}
  {%- set ns = namespace(out='') -%}
  {%- for piece in text.split('<channel|>') -%}
    {%- set ns.out = ns.out + piece.split('<|channel>')[0] -%}
  {%- endfor -%}
  {{ ns.out | trim }}
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(open=false) -%}
{%- set first = messages[0] -%}
{%- if first.role == 'system' or tools or enable_thinking -%}
  {{ '<|turn>system\\n' }}
  {%- if enable_thinking %}<|think|>{{ '\\n' }}{% endif -%}
  {%- if first.role == 'system' %}{{ words(first.content) }}{% endif -%}
  {%- for tool in tools or [] -%}
    {%- set f = tool.function -%}
    <|tool>declaration:{{ f.name }}{description:{{ value(f.description or '') -}}
    {%- if f.parameters %},parameters:{{ value(f.parameters) }}{% endif -%}
    }<tool|>
  {%- endfor -%}
  {{ '<turn|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- if not loop.first %}{{ raise_exception('a system message must come first') }}{% endif -%}
  {%- elif message.role == 'tool' -%}
    <|tool_response>response:{{ message.name or 'unknown' -}}
    {value:{{ value(words(message.content)) }}}<tool_response|>
  {%- else -%}
    {%- if ns.open and message.role == 'user' -%}
      {{ '<turn|>\\n' }}{% set ns.open = false %}
    {%- endif -%}
    {%- if not ns.open -%}
      {{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {%- endif -%}
    {%- if message.role == 'assistant' and message.content is string -%}
      {{ spoken(message.content) }}
    {%- else -%}
      {{ words(message.content) }}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
      <|tool_call>call:{{ call.function.name }}{{ value(call.function.arguments) }}<tool_call|>
    {%- endfor -%}
    {%- if message.tool_calls -%}
      {%- set ns.open = true -%}
    {%- else -%}
      {{ '<turn|>\\n' }}{% set ns.open = false %}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.open -%}
  {{ '<|turn>model\\n' }}
  {%- if not enable_thinking %}<|channel>thought{{ '\\n' }}<channel|>{% endif -%}
{%- elif add_generation_prompt and enable_thinking and messages[-1].role == 'tool' -%}
  {{ '<|channel>thought\\n' }}
{%- endif -%}
"""


def write_toy_with_words(folder: Path) -> None:
    """A random checkpoint with a vision tower whose image marks are those of its tokenizer."""
    toys.write(toys.Toy(seed=32, vocabulary=SIZE, canvas=16, longest=4096), folder)
    marks = write_words(folder)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = marks["<|image|>"]
    config["boi_token_id"], config["eoi_token_id"] = marks["<|image>"], marks["<image|>"]
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"max_soft_tokens": 70}  # patch size and pooling are those of the tower
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_words(folder: Path) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; 300 tokens.

    Returns:
        The id of every mark. Byte `b` has the id `FIRST_BYTE + b`.
    """
    names = [*MARKS, *(f"<unused{n}>" for n in range(FIRST_BYTE - len(MARKS)))]
    names += [_letter(byte) for byte in range(256)]
    names += [f"<unused{n}>" for n in range(FIRST_BYTE - len(MARKS), SIZE - 256 - len(MARKS))]
    toy = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    toy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    toy.decoder = decoders.ByteLevel()
    toy.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    folder.mkdir(parents=True, exist_ok=True)
    toy.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return {mark: i for i, mark in enumerate(MARKS)}


def _letter(byte: int) -> str:
    """The printable stand-in for a byte that byte-level tokenizers share."""
    shy = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
    return chr(256 + shy.index(byte)) if byte in shy else chr(byte)
