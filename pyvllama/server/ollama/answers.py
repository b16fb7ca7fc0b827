"""Answers in Ollama's shape, made of OpenAI's: `message` of chat, `response` of generate, whole or in pieces."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pyvllama.server.ollama.durations import ns_of_ms, ns_of_s
from pyvllama.server.ollama.responses import Answer, AnswerMessage, OllamaChatResponse, OllamaGenerateResponse
from pyvllama.types import Timings, Usage

__all__ = ["AnswerShape", "metrics"]

_REASONS = {"tool_calls": "stop"}  # Ollama has no word of its own for it


def metrics(timings: Timings, usage: Usage, *, load_s: float, total_s: float) -> dict[str, int]:
    """What an answer cost, in Ollama's words.

    Args:
        timings, usage: of the answer, final.
        load_s: seconds until the model was there.
        total_s: seconds from the request on.
    """
    return {
        "total_duration": ns_of_s(total_s),
        "load_duration": ns_of_s(load_s),
        "image_encode_duration": ns_of_ms(timings.image_encode_ms),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": ns_of_ms(timings.prompt_ms),
        "eval_count": usage.completion_tokens,
        "eval_duration": ns_of_ms(timings.predicted_ms),
    }


class AnswerShape:
    """Makes the answers of one request.

    Args:
        model: the name that the client used: it is given back as it came.
        is_chat: whether /api/chat was asked, or /api/generate.
    """

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat

    def piece(self, chunk: Mapping[str, Any]) -> Answer | None:
        """A line of the stream of a `chat.completion.chunk`; None for one that has nothing to show."""
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text, calls, logprobs = delta.get("content") or "", delta.get("tool_calls"), _logprobs(choice.get("logprobs"))
        if not text and not calls and not logprobs:
            return None
        return self._make(text, calls, logprobs, done=False)

    def whole(
        self, completion: Mapping[str, Any], costs: Mapping[str, int], context: list[int] | None = None
    ) -> Answer:
        """The only answer where nothing is streamed, of a `chat.completion`."""
        (choice,) = completion["choices"]
        message = choice["message"]
        return self._make(
            message.get("content") or "",
            message.get("tool_calls"),
            _logprobs(choice.get("logprobs")),
            done=True,
            done_reason=_reason(choice["finish_reason"]),
            context=context,
            **costs,
        )

    def last(self, finish_reason: str, costs: Mapping[str, int], context: list[int] | None = None) -> Answer:
        """The last line of a stream."""
        return self._make("", None, None, done=True, done_reason=_reason(finish_reason), context=context, **costs)

    def empty(self, done_reason: str) -> Answer:
        """The answer to a request that only loads ("load") or unloads ("unload") the model."""
        return self._make("", None, None, done=True, done_reason=done_reason)

    def _make(
        self,
        text: str,
        calls: Sequence[Mapping[str, Any]] | None,
        logprobs: list[dict[str, Any]] | None,
        *,
        context: list[int] | None = None,
        **more: Any,
    ) -> Answer:
        head = {"model": self._model, "created_at": datetime.now(timezone.utc), "logprobs": logprobs, **more}
        if not self._is_chat:
            return OllamaGenerateResponse(response=text, context=context, **head)
        called = [_tool_call(call, i) for i, call in enumerate(calls)] if calls else None
        return OllamaChatResponse(message=AnswerMessage.model_validate({"content": text, "tool_calls": called}), **head)


def _reason(finish_reason: str | None) -> str:
    return _REASONS.get(finish_reason or "stop", finish_reason or "stop")


def _tool_call(call: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Arguments are an object in Ollama's API, JSON text in OpenAI's."""
    function = call["function"]
    arguments = json.loads(function["arguments"])
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return {"id": call["id"], "function": {"index": i, "name": function["name"], "arguments": arguments}}


def _logprobs(found: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """A list of tokens; OpenAI's object holds it as `content`."""
    if not found or not found.get("content"):
        return None
    return [{**entry, "top_logprobs": entry.get("top_logprobs") or None} for entry in found["content"]]
