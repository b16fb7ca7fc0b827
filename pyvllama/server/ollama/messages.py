"""Ollama's messages in OpenAI's shape."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from pyvllama.errors import ImageError
from pyvllama.server.ollama.schema import Message, Tool, ToolCall

__all__ = ["decode_image", "decode_images", "openai_messages", "openai_tools", "prompt_messages"]

_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as `LLM.chat` takes them; a message's pictures stand before its text, as Ollama puts them.

    Raises:
        ImageError: a picture is no base64; naming it.
    """
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def prompt_messages(prompt: str, system: str | None, images: Sequence[str]) -> list[dict[str, Any]]:
    """The conversation that a prompt of /api/generate makes.

    Raises:
        ImageError: as `openai_messages`.
    """
    user = {"role": "user", "content": _content(prompt, images, "")}
    return [{"role": "system", "content": system}, user] if system else [user]


def openai_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools as the client wrote them, without what is null; None if there are none."""
    return [tool.model_dump(exclude_none=True) for tool in tools] if tools else None


def decode_image(text: str, where: str) -> bytes:
    """The bytes of a picture in base64, with or without a `data:` prefix.

    Args:
        text: what the client sent.
        where: its place, such as `messages[0].images[1]`.

    Raises:
        ImageError: it is none. Nothing else is tried: no path, no address.
    """
    prefix = _DATA_URI.match(text)
    encoded = re.sub(r"[\t\n\f\r ]+", "", text[prefix.end() :] if prefix else text).rstrip("=")
    try:
        data = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise ImageError(f"{where} is no picture in base64: send its bytes so encoded, not a path or an address")
    return data


def decode_images(texts: Sequence[str], where: str = "") -> list[bytes]:
    """The bytes of the pictures of a message, or of a request; `where` is what stands before `images[0]`.

    Raises:
        ImageError: as `decode_image`.
    """
    return [decode_image(text, f"{where}images[{i}]") for i, text in enumerate(texts)]


def _message(message: Message, where: str) -> dict[str, Any]:
    content = message.content or ""
    result: dict[str, Any] = {
        "role": message.role,
        "content": _content(content, message.images or (), f"{where}."),
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    if message.tool_calls:
        result["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return {key: value for key, value in result.items() if value is not None}


def _content(text: str, images: Sequence[str], where: str) -> str | list[dict[str, Any]]:
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "image", "image": data} for data in decode_images(images, where)]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"type": "function", "function": function, **({"id": call.id} if call.id else {})}
