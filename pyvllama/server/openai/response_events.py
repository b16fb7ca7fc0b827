"""From chat chunks to the events of `/v1/responses`, and the response object that they build."""

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["ResponseEvents"]

Event = dict[str, Any]


class ResponseEvents:
    """One response while it is made: chat chunks in, events out.

    Order of the events: `response.created`, `response.in_progress`, then for a message `output_item.added`,
    `content_part.added`, `output_text.delta` ..., `output_text.done`, `content_part.done`, `output_item.done`, or for a
    call `output_item.added`, `function_call_arguments.delta`, `.done`, `output_item.done`; and at last
    `response.completed`, `response.incomplete` or `response.failed`.

    Args:
        asked: those fields of the response that only say what was asked for.
        with_logprobs: whether the answer's log-probabilities are shown.

    Attributes:
        response: the object as it is so far.
    """

    def __init__(self, asked: Mapping[str, Any], *, with_logprobs: bool) -> None:
        self.response: dict[str, Any] = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            **asked,
            "output": [],
            "usage": None,
        }
        self._with_logprobs = with_logprobs
        self._n_events = 0
        self._message: dict[str, Any] | None = None
        self._calls: list[dict[str, Any]] = []
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def begin(self) -> list[Event]:
        """Before the first token."""
        return [self._about_all("response.created"), self._about_all("response.in_progress")]

    def take(self, chunk: Mapping[str, Any]) -> list[Event]:
        """A `chat.completion.chunk` with one choice."""
        (choice,) = chunk["choices"]
        self._finish_reason = choice["finish_reason"] or self._finish_reason
        delta = choice["delta"]
        logprobs = (choice["logprobs"] or {}).get("content", []) if self._with_logprobs else []
        events: list[Event] = []
        if delta.get("content") or logprobs:
            events += self._text_came(delta.get("content") or "", logprobs)
        for call in delta.get("tool_calls", ()):
            events += self._call_came(call)
        return events

    def end(self, usage: Mapping[str, Any], timings: Mapping[str, Any]) -> list[Event]:
        """After the last chunk: what is open is closed, and the response is whole.

        Args:
            usage: OpenAI's chat `usage`.
            timings: goes into the response as it is.
        """
        is_cut = self._finish_reason == "length"
        events = [] if self._message is not None or self._calls else self._open_message()
        events += self._close_message("incomplete" if is_cut else "completed")
        self.response.update(
            status="incomplete" if is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            usage=_usage(usage),
            timings=dict(timings),
        )
        return [*events, self._about_all("response.incomplete" if is_cut else "response.completed")]

    def fail(self, message: str) -> list[Event]:
        """Instead of `end`."""
        self.response.update(status="failed", error={"code": "server_error", "message": message})
        return [self._about_all("response.failed")]

    def _text_came(self, text: str, logprobs: Iterable[Mapping[str, Any]]) -> list[Event]:
        events = [] if self._message is not None else self._open_message()
        self._text += text
        self._logprobs += [dict(entry) for entry in logprobs]
        return [*events, self._about_text("delta", delta=text, logprobs=[_short(entry) for entry in logprobs])]

    def _call_came(self, call: Mapping[str, Any]) -> list[Event]:
        function = call["function"]
        events = self._close_message("completed")
        item = {"type": "function_call", "id": _new_id("fc"), "call_id": call["id"], "name": function["name"]}
        place = {"item_id": item["id"], "output_index": len(self.response["output"])}
        done = {**item, "arguments": function["arguments"], "status": "completed"}
        self._calls.append(done)
        self.response["output"].append(done)
        index = place["output_index"]
        return [
            *events,
            self._event(
                "response.output_item.added",
                output_index=index,
                item={**item, "arguments": "", "status": "in_progress"},
            ),
            self._event("response.function_call_arguments.delta", **place, delta=function["arguments"]),
            self._event(
                "response.function_call_arguments.done",
                **place,
                name=function["name"],
                arguments=function["arguments"],
            ),
            self._event("response.output_item.done", output_index=index, item=done),
        ]

    def _open_message(self) -> list[Event]:
        self._message = {"type": "message", "id": _new_id("msg"), "role": "assistant"}
        item = {**self._message, "status": "in_progress", "content": []}
        added = self._event("response.output_item.added", output_index=self._index, item=item)
        part = self._event("response.content_part.added", **self._place, part=_part("", []))
        return [added, part]

    def _close_message(self, status: str) -> list[Event]:
        if self._message is None:
            return []
        part = _part(self._text, self._logprobs)
        item = {**self._message, "status": status, "content": [part]}
        events = [
            self._about_text("done", text=self._text, logprobs=[_short(entry) for entry in self._logprobs]),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=self._index, item=item),
        ]
        self.response["output"].append(item)
        self._message, self._text, self._logprobs = None, "", []
        return events

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    @property
    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message["id"], "output_index": self._index, "content_index": 0}

    def _about_text(self, what: str, **fields: Any) -> Event:
        return self._event(f"response.output_text.{what}", **self._place, **fields)

    def _about_all(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": [*self.response["output"]]})

    def _event(self, kind: str, **fields: Any) -> Event:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **fields}


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A token's log-probability as events have it: without bytes."""
    top = [{"token": t["token"], "logprob": t["logprob"]} for t in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's `usage` of a response, from that of a chat completion."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
