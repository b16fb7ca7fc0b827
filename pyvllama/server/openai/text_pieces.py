"""OpenAI's old shape of answers, `text_completion`, with its log-probabilities."""

import codecs
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from pyvllama.completion import Delta
from pyvllama.sampler import Sampled
from pyvllama.tokenizer import Tokenizer

__all__ = ["TextPieces"]


class TextPieces:
    """The answers to the prompts of one request while they are made.

    With n answers each, the j-th answer to the i-th prompt has the index i * n + j.

    Args:
        model: its name.
        tokenizer: for the texts of tokens.
        n: answers to each prompt.
        echoes: of each prompt, what its answers begin with.
        with_logprobs: whether log-probabilities are shown.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, n: int, echoes: Sequence[str], *, with_logprobs: bool) -> None:
        self._head = {"object": "text_completion", "created": int(time.time()), "model": model}
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._tokenizer = tokenizer
        self._n = n
        self._echoes = echoes
        self._offsets = [_Offsets() for _ in range(n * len(echoes))] if with_logprobs else None

    @property
    def n_choices(self) -> int:
        """Answers to all prompts."""
        return self._n * len(self._echoes)

    def begin(self) -> list[dict[str, Any]]:
        """The first pieces: what is to be echoed."""
        return [self.piece(i, self._echoes[i // self._n]) for i in range(self.n_choices) if self._echoes[i // self._n]]

    def take(self, prompt: int, delta: Delta) -> dict[str, Any] | None:
        """The piece of a prompt's delta; None if there is nothing in it to be shown."""
        index = prompt * self._n + delta.choice
        logprobs = self._logprobs(index, delta.sampled) if delta.sampled else None
        if not (delta.text or logprobs or delta.finish_reason):
            return None
        return self.piece(index, delta.text, delta.finish_reason, logprobs)

    def whole(self, answers: Sequence[Iterable[Delta]]) -> dict[str, Any]:
        """All of it: of each prompt the deltas of all its answers."""
        choices = []
        for prompt, deltas in enumerate(answers):
            own: dict[int, list[Delta]] = {choice: [] for choice in range(self._n)}
            for delta in deltas:
                own[delta.choice].append(delta)
            for choice, pieces in own.items():
                index = prompt * self._n + choice
                text = self._echoes[prompt] + "".join(piece.text for piece in pieces)
                logprobs = self._logprobs(index, [token for piece in pieces for token in piece.sampled])
                choices.append(_choice(index, text, pieces[-1].finish_reason, logprobs))
        return self.object(choices)

    def piece(self, index: int, text: str, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """An object with a piece of one answer."""
        return self.object([_choice(index, text, reason, logprobs)])

    def object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An object with these choices."""
        return {"id": self._id, **self._head, "choices": choices}

    def _logprobs(self, index: int, sampled: Iterable[Sampled]) -> dict[str, Any] | None:
        """Four lists, a place for each token; `text_offset` counts characters from the answer's beginning."""
        if self._offsets is None:
            return None
        tokens, logprobs, tops, offsets = [], [], [], []
        for s in sampled:
            piece = self._tokenizer.piece(s.token, special=True)
            tokens.append(_token_text(piece))
            logprobs.append(s.logprob)
            top = {_token_text(self._tokenizer.piece(token, special=True)): logprob for token, logprob in s.top}
            tops.append({**top, tokens[-1]: s.logprob} if s.top else {})
            offsets.append(self._offsets[index].of(piece))
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


class _Offsets:
    """Where in a text its tokens begin; one that begins within a character begins where that does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._n_chars = 0

    def of(self, piece: bytes) -> int:
        start = self._n_chars
        self._n_chars += len(self._decoder.decode(piece))
        return start


def _choice(index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}


def _token_text(piece: bytes) -> str:
    """A token as a key: OpenAI's spelling of bytes that are no text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
