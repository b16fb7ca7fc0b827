"""What the tests of OpenAI's API say to a server, and what the pocket model answers."""

from pathlib import Path
from typing import Any

import openai
from talk import data_uri

RINGS = "A yellow ring at the bottom left and an orange triangle at the bottom right."
"""Of 01_square.png."""
WEATHER = {
    "name": "weather",
    "description": "The weather of some days.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
SHAPE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "yellow"]}, "round": {"type": "boolean"}},
    "required": ["colour", "round"],
    "additionalProperties": False,
}


def connect(server: Any, **options: Any) -> openai.OpenAI:
    """The official client; it does not try again what failed."""
    return openai.OpenAI(**{"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0, **options})


def picture(path: Path, **more: Any) -> dict[str, Any]:
    """A part of a user's message."""
    return {"type": "image_url", "image_url": {"url": data_uri(path), **more}}


def said(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def endless(server: Any) -> dict[str, Any]:
    """Options of an answer that never ends of itself."""
    tokenizer = server.app.state.pool.loaded()[0].served.model.tokenizer
    return {"logit_bias": {str(token): -1e9 for token in tokenizer.eog}}


def n_open(server: Any) -> int:
    """Requests that have not ended."""
    return server.app.state.pool.loaded()[0].served.n_open
