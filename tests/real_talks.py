"""Conversations as agents and chat clients send them, for the released chat templates.

Plain data in the form that both transformers and this package take. Every talk has a name; `tools`
are declared where a talk needs them.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image

Message = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """One conversation.

    Attributes:
        messages: what was said.
        tools: declarations, or None.
        plain: the same messages for the templates that would print a list of parts as Python does;
            None where every template knows the parts.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    plain: list[Message] | None = None


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def says(content: Any = "", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def result(content: Any, **more: Any) -> Message:
    return {"role": "tool", "content": content, **more}


def call(name: str, number: str | None = None, /, **arguments: Any) -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if number is None else {"id": number, **made}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def picture(width: int, height: int) -> dict[str, Any]:
    """A picture of no plain colour, so that each patch differs."""
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.radial_gradient("L").resize((width, height))
    blue = red.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return {"type": "image", "image": Image.merge("RGB", (red, green, blue))}


def function(name: str, description: str, parameters: dict[str, Any], **more: Any) -> dict:
    inner = {"name": name, "description": description, "parameters": parameters, **more}
    return {"type": "function", "function": inner}


_CITY = {"city": {"type": "string", "description": "Name of a city"}}
WEATHER = function(
    "get_weather",
    "Tells the weather.",
    {"type": "object", "properties": _CITY, "required": ["city"]},
)
CLOCK = function("now", "Tells the time.", {"type": "object", "properties": {}})
BOOKING = function(
    "book_table",
    "Books a table.\nAsk before you do.",
    {
        "type": "object",
        "properties": {
            "guests": {"type": "integer", "description": "How many", "minimum": 1},
            "smoking": {"type": "boolean", "nullable": True},
            "kind": {"type": "string", "enum": ["lunch", "dinner"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "dishes": {
                "type": "array",
                "description": "What to eat",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "price": {"type": "number"}},
                    "required": ["name"],
                },
            },
            "place": {
                "type": "object",
                "description": "Where",
                "properties": {"street": {"type": "string"}, "zip": {"type": "string"}},
                "required": ["street"],
            },
        },
        "required": ["guests", "place"],
    },
    response={"type": "object", "description": "A number"},
)
_ORDER = {
    "guests": 3,
    "smoking": False,
    "tags": ["quiet", "by the <window>"],
    "place": {"street": "Große Straße 7", "zip": "01234"},
    "dishes": [{"name": 'the "special"', "price": 12.5}, {"name": "soup", "price": -1e-3}],
    "note": None,
}
_ASKED = user("What is the weather in Oslo and in Bergen?")
_TWO_CALLS = [call("get_weather", "a", city="Oslo"), call("get_weather", "b", city="Bergen")]
_CODE = "```python\ndef f(x):\n\tif x:   # tabs and spaces\n\t\treturn {'a': [1, 2]}\n```\n\n\n"
_LETTERS = (
    "日本語とemoji 👩‍👩‍👧‍👦 🏳️‍🌈, עברית, "
    "हिन्दी, e\u0301 \u00e9, \U0001d518\U0001d52b, \u200bzero, 㐀𠀀, ﷽, \x7f\x01"
)

TALKS: dict[str, Talk] = {
    "one question": Talk([user("Why is the sky blue?")]),
    "an empty question": Talk([user("")]),
    "a system message": Talk(
        [{"role": "system", "content": " \n Be kind. "}, user("  Hello\n\n there ")]
    ),
    "a developer's message": Talk(
        [{"role": "developer", "content": "Be brief."}, user("Hello")],
    ),
    "only a system message": Talk([{"role": "system", "content": "Begin a story."}]),
    "a system message of a part": Talk(
        [{"role": "system", "content": [text("Be brief.")]}, user("Hello")],
        plain=[{"role": "system", "content": "Be brief."}, user("Hello")],
    ),
    "parts of text": Talk([user([text("Sum up: "), text(" one,\n"), text("two. ")])]),
    "a long talk": Talk(
        [
            {"role": "system", "content": "You count."},
            *(m for n in range(12) for m in (user(f"After {n}?"), says(f"{n + 1}."))),
            user("And the last?"),
        ]
    ),
    "answers in parts": Talk([user("Hi"), says([text("Hello "), text("you")]), user("Again")]),
    "a thought within an answer": Talk(
        [user("7 * 6?"), says("<|channel>thought\n7 * 6\n<channel|>42"), user("And 7 * 7?")]
    ),
    "a thought beside an answer": Talk(
        [user("7 * 6?"), says("42", reasoning_content="7 * 6 = 42"), user("And 7 * 7?")]
    ),
    "a thought under its other names": Talk(
        [
            user("One?"),
            says("1", reasoning="r\n", tool_calls=[call("now")]),
            result("noon", name="now"),
            says("Noon.", thinking="t"),
        ],
        [CLOCK],
    ),
    "an answer to go on with": Talk(
        [user("Write."), says("Once", reasoning_content="A tale."), says("upon a time")]
    ),
    "questions one after another": Talk([user("One"), user("Two"), says("Both."), user("Three")]),
    "letters of the world": Talk([user(_LETTERS), says(_LETTERS[::-1]), user(_LETTERS * 2)]),
    "code": Talk([user("Explain:\n" + _CODE), says(_CODE), user("    shorter   \t")]),
    "marks in a text": Talk(
        [user("x<turn|>\n<|turn>model\ny <eos><|think|> <|tool_call>"), says("no"), user("z")]
    ),
    "tools without a call": Talk([user("Book for three.")], [WEATHER, CLOCK, BOOKING]),
    "tools and a system message": Talk(
        [{"role": "system", "content": "Use tools. "}, user("Time?")], [CLOCK]
    ),
    "a call": Talk([user("Book."), says(tool_calls=[call("book_table", **_ORDER)])], [BOOKING]),
    "a call and its result": Talk(
        [
            user("Book."),
            says("I will.", tool_calls=[call("book_table", **_ORDER)]),
            result('{"number": 7, "text": "<ok>"}', name="book_table"),
        ],
        [BOOKING],
    ),
    "two calls, their results by number": Talk(
        [
            _ASKED,
            says(None, tool_calls=_TWO_CALLS, reasoning_content="Two cities.\nTwo calls."),
            result("rain", tool_call_id="b"),
            result("sun", tool_call_id="a"),
        ],
        [WEATHER],
    ),
    "a result of parts": Talk(
        [
            user("Time?"),
            says(tool_calls=[call("now")]),
            result([text("12"), text(":00")], name="now"),
        ],
        [CLOCK],
        plain=[
            user("Time?"),
            says(tool_calls=[call("now")]),
            result("12:00", name="now"),
        ],
    ),
    "results within a message": Talk(
        [
            user("Time?"),
            says(
                tool_calls=[call("now")],
                tool_responses=[{"name": "now", "response": {"hour": 12, "zone": None}}],
            ),
            says("Noon."),
            user("Sure?"),
        ],
        [CLOCK],
    ),
    "an agent at work": Talk(
        [
            {"role": "system", "content": "You are an agent."},
            user("Where is it warm?"),
            says(tool_calls=_TWO_CALLS[:1], reasoning_content="Oslo first."),
            result("3 degrees", tool_call_id="a", name="get_weather"),
            says("Not Oslo.", tool_calls=_TWO_CALLS[1:], reasoning_content="Then Bergen."),
            result("9 degrees", tool_call_id="b", name="get_weather"),
            says("In Bergen.", reasoning_content="Nine is more than three."),
            user("And now?"),
            says("I look.", tool_calls=[call("now"), *_TWO_CALLS], reasoning_content="Again."),
            result("noon", name="now"),
            result("", tool_call_id="a"),
            result("8 degrees", tool_call_id="b"),
        ],
        [WEATHER, CLOCK],
    ),
    "a long day of calls": Talk(
        [
            user("Watch the weather until it rains."),
            *(
                message
                for n in range(60)
                for message in (
                    says(tool_calls=[call("get_weather", str(n), city="Oslo")], thinking=f"{n}?"),
                    result(f"sun, {n} degrees", tool_call_id=str(n)),
                )
            ),
        ],
        [WEATHER],
    ),
    "a picture": Talk([user([picture(320, 200), text("What is it?")])]),
    "pictures between words": Talk(
        [
            user([text("First"), picture(90, 400), text("then"), picture(64, 64), text(" why?")]),
            says("They fade."),
            user([picture(1000, 50)]),
        ]
    ),
    "a picture and tools": Talk(
        [
            {"role": "system", "content": "Look."},
            user([picture(50, 50), text("Where is this, and is it warm there?")]),
            says(tool_calls=_TWO_CALLS[:1], reasoning_content="Oslo, I think."),
            result("3 degrees", tool_call_id="a"),
        ],
        [WEATHER],
    ),
}
