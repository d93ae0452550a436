"""Tools as users declare them, and calls as past messages hold them.

Knows OpenAI's way of writing both. Does not read what the model writes, see `calls.py`, does not
run tools, and does not render declarations: that is the chat template's work.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.letters import brief
from diffusiongemma.dialog.calls import ToolCall


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Declarations in OpenAI's shape, found to be well formed; None where there are none.

    Raises:
        InputError: one of them is not
            `{'type': 'function', 'function': {'name', 'description', 'parameters'}}`.
    """
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise InputError(f"tools must be a list of declarations, got {type(tools).__name__}")
    return [_check_tool(tool, number) for number, tool in enumerate(tools, start=1)] or None


def _check_tool(tool: Any, number: int) -> dict[str, Any]:
    shape = "write {'type': 'function', 'function': {'name': ..., 'parameters': {...}}}."
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        got = f"type {tool.get('type')!r}" if isinstance(tool, Mapping) else type(tool).__name__
        raise InputError(f"tool {number} is not a function declaration, got {got}; {shape}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InputError(f"tool {number} has no object 'function'; {shape}")
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[^\s{}<>:]+", name):
        raise InputError(
            f"tool {number} needs a name without spaces and marks, got {brief(name)}; {shape}"
        )
    for key, kind in (("description", str), ("parameters", Mapping)):
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise InputError(
                f"'{key}' of tool '{name}' has the wrong type {type(function[key]).__name__}; "
                f"{shape}"
            )
    kept = {key: value for key, value in function.items() if value is not None}
    return {**tool, "function": kept}


def check_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The `tool_calls` of a past message, with arguments as objects.

    Takes `ToolCall` objects, or OpenAI's dictionaries whose arguments may be a JSON text.
    """
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where}: 'tool_calls' must be a list, got {type(calls).__name__}")
    return [_check_call(call, where) for call in calls]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"function": {"name": call.name, "arguments": call.arguments}}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(
            f"{where}: a tool call must be "
            "{'function': {'name': ..., 'arguments': {...}}}, "
            f"got {brief(call)}"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: arguments of tool call '{function['name']}' are not JSON ({error}); "
                "pass an object or its JSON text"
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InputError(
            f"{where}: arguments of tool call '{function['name']}' must be an object, "
            f"got {type(arguments).__name__}"
        )
    return {**call, "type": "function", "function": {**function, "arguments": dict(arguments)}}
