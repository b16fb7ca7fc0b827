"""Conversations in OpenAI's shape: checked, and turned into the shape that chat templates expect."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyvllama.errors import PromptError

__all__ = ["ImagePart", "TemplateMessages", "read_messages", "read_tools"]

_ROLES = {  # role -> what the template is told
    "system": "system",
    "developer": "system",  # OpenAI's newer word
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "ipython",  # Meta's word for a tool's answer
}
_PART_TYPES = '"text", "image_url" and "image"'


@dataclass(frozen=True, eq=False)
class ImagePart:
    """An image of a conversation, not loaded yet.

    Attributes:
        source: what `load_image` takes.
        where: its place for messages, such as `messages[0].content[1]`.
    """

    source: Any
    where: str


@dataclass(eq=False)
class TemplateMessages:
    """What a chat template is given.

    Attributes:
        messages: plain dicts; `content` is a string, or parts `{"type": "text", "text": str}` and `{"type": "image"}`.
        images: the images of all parts, in order.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[ImagePart] = field(default_factory=list)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> TemplateMessages:
    """Check a conversation in OpenAI's shape.

    Content that is all text becomes one string, which every template takes. Arguments of tool calls, JSON text in
    OpenAI's shape, become objects, as templates expect. Keys beyond OpenAI's go to the template as they are, those that
    are None don't.

    Raises:
        PromptError: naming the message, what is wrong with it, and what it should be.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            f'messages must be a list of messages like {{"role": "user", "content": "Hello"}}, not {_kind(messages)}'
        )
    if not messages:
        raise PromptError("messages is empty: a prompt needs at least one message")
    result = TemplateMessages()
    for i, message in enumerate(messages):
        result.messages.append(_read_message(message, f"messages[{i}]", result.images))
    return result


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    """Check OpenAI's function descriptions; None if there are none.

    Raises:
        PromptError: if it is no list of JSON objects.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise PromptError(f"tools must be a list of function descriptions, not {_kind(tools)}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise PromptError(f"tools[{i}] must be a function description, a JSON object, not {_kind(tool)}")
    return [_plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)] or None


def _read_message(message: object, where: str, images: list[ImagePart]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        hint = ": pass its .model_dump()" if hasattr(message, "model_dump") else ""
        raise PromptError(f'{where} must be an object with "role" and "content", not {_kind(message)}{hint}')
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        said = f"has the unknown role {role!r}" if "role" in message else 'has no "role"'
        raise PromptError(f"{where} {said}: give one of {', '.join(_ROLES)}")
    result: dict[str, Any] = {"role": _ROLES[role]}
    calls = message.get("tool_calls")
    if calls:  # absent otherwise: templates ask whether the key is there
        result["tool_calls"] = _read_tool_calls(calls, f"{where}.tool_calls")
    content = message.get("content")
    if content is None:
        if role != "assistant" or not calls:
            said = 'has no "content"' if "content" not in message else "has null as its content"
            raise PromptError(f"{where} (role {role}) {said}: give a string or a list of parts")
        result["content"] = ""
    else:
        result["content"] = _read_content(content, f"{where}.content", role, images)
    for key, value in message.items():
        if key in ("role", "content", "tool_calls") or value is None:
            continue
        if key in ("name", "tool_call_id") and not isinstance(value, str):
            raise PromptError(f"{where}.{key} must be a string, not {_kind(value)}")
        result[str(key)] = _plain(value, f"{where}.{key}")
    return result


def _read_content(content: object, where: str, role: str, images: list[ImagePart]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        if not content and role == "user":
            raise PromptError(f"{where} is empty: the user's message needs text or an image")
        return content
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise PromptError(f"{where} must be a string or a list of parts, not {_kind(content)}")
    parts = [_read_part(part, f"{where}[{k}]", images) for k, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        text = "".join(part["text"] for part in parts)
        if not parts or (not text and role == "user"):
            raise PromptError(f"{where} is empty: a list of parts needs text or an image")
        return text
    if role in ("system", "developer"):
        raise PromptError(
            f"{where} holds an image: the {role} message is text only, put images into the user's message"
        )
    return parts


def _read_part(part: object, where: str, images: list[ImagePart]) -> dict[str, str]:
    if not isinstance(part, Mapping):
        raise PromptError(f'{where} must be an object with a "type" ({_PART_TYPES}), not {_kind(part)}')
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise PromptError(f'{where} must have its text as a string under "text", not {_kind(text)}')
        return {"type": "text", "text": text}
    if kind == "image_url":
        url = part.get("image_url")
        if isinstance(url, Mapping):
            url = url.get("url")
        if not isinstance(url, str) or not url:
            raise PromptError(
                f'{where} must have "image_url": {{"url": ...}} with a path, an http(s) address or a data: URI'
            )
        images.append(ImagePart(url, where))
        return {"type": "image"}
    if kind == "image":
        if part.get("image") is None:
            raise PromptError(f'{where} must have "image": a path, bytes, a Pillow image or a uint8 array')
        images.append(ImagePart(part["image"], where))
        return {"type": "image"}
    said = f"has the unknown type {kind!r}" if "type" in part else 'has no "type"'
    raise PromptError(f"{where} {said}: {_PART_TYPES} are supported")


def _read_tool_calls(calls: object, where: str) -> list[Any]:
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Sequence):
        raise PromptError(f"{where} must be a list, not {_kind(calls)}")
    result = []
    for k, call in enumerate(calls):
        plain = _plain(call, f"{where}[{k}]")
        if not isinstance(plain, dict) or not isinstance(function := plain.get("function"), dict):
            raise PromptError(f'{where}[{k}] must be an object with "function": {{"name": ..., "arguments": ...}}')
        if isinstance(arguments := function.get("arguments"), str):
            with contextlib.suppress(ValueError):  # what is no valid JSON, the template shows as it is
                function["arguments"] = json.loads(arguments)
        result.append(plain)
    return result


def _plain(value: object, where: str) -> Any:
    """A copy made of JSON's own types; a template gets nothing that has methods of its own."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise PromptError(f"{where} must be made of JSON's types, not {_kind(value)}")


def _kind(value: object) -> str:
    """A value's kind in words for messages."""
    return "null" if value is None else f"a value of type {type(value).__name__}"
