"""Tool calls in an answer's text, as Llama 3.1 writes them: `{"name": NAME, "parameters": {...}}`."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["find_tool_calls", "may_be_call", "tool_names"]

_PYTHON_TAG = "<|python_tag|>"


def tool_names(tools: Sequence[Mapping[str, Any]] | None) -> frozenset[str]:
    """Names of OpenAI's function descriptions."""
    return frozenset(tool["function"]["name"] for tool in tools or ())


def may_be_call(text: str) -> bool:
    """Whether what an answer begins with may become a tool call, so that it is not to be shown yet."""
    return text.lstrip()[:1] in ("", "{")


def find_tool_calls(text: str, names: frozenset[str]) -> list[dict[str, Any]] | None:
    """OpenAI's `tool_calls` of an answer that is a call of one of these functions, else None.

    Several calls stand behind one another, with `;` between them or nothing.
    """
    rest = text.strip().removeprefix(_PYTHON_TAG).strip()
    calls = []
    while rest:
        try:
            call, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            return None
        if not isinstance(call, dict) or call.get("name") not in names:
            return None
        arguments = call.get("parameters", call.get("arguments"))
        function = {"name": call["name"], "arguments": json.dumps({} if arguments is None else arguments)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        rest = rest[end:].lstrip("; \n\t")
    return calls or None
