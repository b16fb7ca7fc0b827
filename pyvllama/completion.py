"""Answers in OpenAI's shapes: `chat.completion` and its chunks, with log-probabilities and tool calls."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
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
        self._held: dict[int, str] = {}  # by choice: what may become a tool call
        self._holding: dict[int, bool] = {}
        self._n_ended = 0
        self.dropped_turns: int | None = None

    def whole(self, deltas: Iterable[Delta]) -> dict[str, Any]:
        """The `chat.completion` object, once all pieces are there; those of several answers may be mixed."""
        pieces: list[list[Delta]] = [[] for _ in range(self._n)]
        for delta in deltas:
            pieces[delta.choice].append(delta)
        choices = [self._choice(index, found) for index, found in enumerate(pieces) if found]
        return {**self._object("chat.completion", choices), **self.costs()}

    def chunks(self, deltas: Iterable[Delta]) -> Iterator[dict[str, Any]]:
        """`chat.completion.chunk` objects, as the pieces come; see `chunks_of`."""
        yield self.begin(0)
        for delta in deltas:
            yield from self.chunks_of(delta)

    def begin(self, choice: int) -> dict[str, Any]:
        """The first chunk of a choice; `chunks_of` gives it, too, if nobody has asked for it before."""
        self._held[choice] = ""
        self._holding[choice] = bool(self._tools)
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def chunks_of(self, delta: Delta) -> list[dict[str, Any]]:
        """The `chat.completion.chunk` objects for the next piece.

        The first of each choice has the role, the last of each its `finish_reason`, the last of all `usage` and
        `timings`. Where tools may be called, a beginning that may become a call is held back until it is clear.
        """
        index, reason = delta.choice, delta.finish_reason
        chunks = []
        if index not in self._held:
            chunks.append(self.begin(index))
        held = self._held[index] + delta.text
        self._holding[index] = self._holding[index] and may_be_call(held)
        shown = "" if self._holding[index] else held
        if shown or (delta.sampled and self._logprobs):
            chunks.append(self._chunk(index, {"content": shown}, logprobs=self._log(delta.sampled)))
        held = self._held[index] = held[len(shown) :]
        if reason is None:
            return chunks
        if calls := find_tool_calls(held, self._tools):
            chunks.append(self._chunk(index, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}))
            reason = "tool_calls"
        elif held:
            chunks.append(self._chunk(index, {"content": held}))
        self._n_ended += 1
        last = self._chunk(index, {}, reason)
        return [*chunks, last if self._n_ended < self._n else {**last, **self.costs()}]

    def costs(self) -> dict[str, Any]:
        """`usage` and `timings` so far, and `dropped_turns` where turns may have been."""
        costs: dict[str, Any] = {"usage": self._usage.as_dict(), "timings": self._timings.as_dict()}
        return costs if self.dropped_turns is None else {**costs, "dropped_turns": self.dropped_turns}

    def _choice(self, index: int, pieces: Sequence[Delta]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        reason = pieces[-1].finish_reason
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls := find_tool_calls(text, self._tools):
            message, reason = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
        sampled = [token for piece in pieces for token in piece.sampled]
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": self._log(sampled)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, **self._head, "choices": choices}

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: FinishReason | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._object("chat.completion.chunk", [choice])

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
