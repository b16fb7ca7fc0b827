"""Answers in OpenAI's shapes: `chat.completion` and its chunks, with log-probabilities and tool calls."""

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyvllama.chat_options import ChatOptions
from pyvllama.sampler import Sampled
from pyvllama.tokenizer import Tokenizer
from pyvllama.tool_calls import find_tool_calls, may_be_call, tool_names
from pyvllama.types import FinishReason, Timings, Usage

__all__ = ["Completion", "Delta"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer.

    Attributes:
        choice: which of several answers.
        text: what can be shown now, often empty.
        sampled: the tokens since the last piece.
        finish_reason: with the last piece.
    """

    choice: int
    text: str = ""
    sampled: tuple[Sampled, ...] = ()
    finish_reason: FinishReason | None = None


class Completion:
    """One completion while it is made.

    Args:
        model: its name.
        tokenizer: for the texts of tokens.
        timings, usage: filled by who generates.
        options: of the request.

    Attributes:
        dropped_turns: turns left away to make room; None: they were all to stay.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, timings: Timings, usage: Usage, options: ChatOptions) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._timings = timings
        self._usage = usage
        self._n = options.n
        self._logprobs = options.params.top_logprobs is not None
        self._tools = tool_names(options.tools)
        self.dropped_turns: int | None = None

    def whole(self, deltas: Iterable[Delta]) -> dict[str, Any]:
        """The `chat.completion` object, once all pieces are there."""
        choices = []
        for index, group in itertools.groupby(deltas, key=lambda delta: delta.choice):
            pieces = list(group)
            text = "".join(piece.text for piece in pieces)
            reason = pieces[-1].finish_reason
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls := find_tool_calls(text, self._tools):
                message, reason = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
            sampled = [token for piece in pieces for token in piece.sampled]
            choices.append(
                {"index": index, "message": message, "finish_reason": reason, "logprobs": self._log(sampled)}
            )
        return {**self._object("chat.completion", choices), **self._costs()}

    def chunks(self, deltas: Iterable[Delta]) -> Iterator[dict[str, Any]]:
        """`chat.completion.chunk` objects, as the pieces come.

        The first of each choice has the role, the last of each its `finish_reason`, the last of all `usage` and
        `timings`. Where tools may be called, a beginning that may become a call is held back until it is clear.
        """
        pieces = iter(deltas)
        for index in range(self._n):
            yield self._chunk(index, {"role": "assistant", "content": ""})
            held = ""
            holding = bool(self._tools)
            reason: FinishReason | None = None
            while reason is None:
                piece = next(pieces)
                held += piece.text
                reason = piece.finish_reason
                holding = holding and may_be_call(held)
                shown = "" if holding else held
                if shown or (piece.sampled and self._logprobs):
                    yield self._chunk(index, {"content": shown}, logprobs=self._log(piece.sampled))
                held = held[len(shown) :]
            if calls := find_tool_calls(held, self._tools):
                yield self._chunk(index, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
                reason = "tool_calls"
            elif held:
                yield self._chunk(index, {"content": held})
            last = self._chunk(index, {}, reason)
            yield last if index + 1 < self._n else {**last, **self._costs()}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, **self._head, "choices": choices}

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: FinishReason | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._object("chat.completion.chunk", [choice])

    def _costs(self) -> dict[str, Any]:
        costs: dict[str, Any] = {"usage": self._usage.as_dict(), "timings": self._timings.as_dict()}
        return costs if self.dropped_turns is None else {**costs, "dropped_turns": self.dropped_turns}

    def _log(self, sampled: Iterable[Sampled]) -> dict[str, Any] | None:
        """OpenAI's `logprobs` object; None if nobody asked."""
        if not self._logprobs:
            return None
        entries = []
        for s in sampled:
            top = [self._entry(token, logprob) for token, logprob in s.top]
            entries.append({**self._entry(s.token, s.logprob), "top_logprobs": top})
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        piece = self._tokenizer.piece(token, special=True)
        return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}
