"""Text to token ids and back, over the vocabulary of a loaded GGUF.

Special tokens (`<|image|>`, `<|eot_id|>`, ...) steer the model, so text never becomes one unless the caller says so.
"""

import ctypes
import functools
import itertools
from collections.abc import Iterable
from typing import Any

from pyvllama._runtime import llama_cpp
from pyvllama.errors import BackendError, PromptError

__all__ = ["IMAGE_TOKEN", "Tokenizer", "well_formed"]

IMAGE_TOKEN = "<|image|>"
"""The text of the token that stands for an image."""

_MAX_TEXT_BYTES = 2**31 - 1  # llama.cpp counts in int32


def well_formed(text: str) -> str:
    """The same text with lone surrogates (JSON can carry them, UTF-8 cannot) as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    return text


class Tokenizer:
    """The vocabulary of a model. Immutable, so threads may share it; closed with its model.

    Args:
        vocab: what `llama_cpp.llama_model_get_vocab(model)` returns.
        more_ends: tokens that end a generation beside those that llama.cpp knows.
    """

    def __init__(self, vocab: Any, more_ends: Iterable[int] = ()) -> None:
        self._vocab: Any = vocab
        self._more_ends = more_ends
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(vocab)

    @property
    def _open(self) -> Any:
        if self._vocab is None:
            raise BackendError("the model is closed")
        return self._vocab

    def close(self) -> None:
        """The vocabulary goes away with its model: any use from now on raises BackendError."""
        self._vocab = None

    @property
    def bos(self) -> int | None:
        """The token that every prompt begins with, None if the vocabulary has none."""
        return self._or_none(llama_cpp.llama_vocab_bos(self._open))

    @property
    def eos(self) -> int | None:
        """The token that the file names as the end of a text, None if it names none. See `eog` for all that end one."""
        return self._or_none(llama_cpp.llama_vocab_eos(self._open))

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens: text -> id, by rising id. Of two with one text the first counts."""
        found: dict[str, int] = {}
        for token in self._tokens_with(llama_cpp.llama_vocab_is_control):
            text = llama_cpp.llama_vocab_get_text(self._open, token).decode("utf-8", errors="replace")
            if text:
                found.setdefault(text, token)
        return found

    @functools.cached_property
    def eog(self) -> frozenset[int]:
        """The tokens that end a generation (`<|eot_id|>`, `<|end_of_text|>`, `<|eom_id|>`, ...)."""
        return frozenset((*self._tokens_with(llama_cpp.llama_vocab_is_eog), *self._more_ends))

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Text to token ids, without BOS or EOS.

        Args:
            text: any string; lone surrogates become U+FFFD.
            parse_special: whether the text of a special token becomes that token. False for everything that a user
                typed: it then stays text.

        Raises:
            PromptError: if the text has 2 GiB or more.
        """
        data = well_formed(text).encode()
        if not data:
            return []
        if len(data) > _MAX_TEXT_BYTES:
            raise PromptError(f"a text of {len(data)} bytes cannot be tokenized: the limit is {_MAX_TEXT_BYTES} bytes")
        n_max = len(data) // 3 + 16  # rarely too small: then the first call answers with the size it needs
        for _ in range(2):
            buffer = (llama_cpp.llama_token * n_max)()
            n = llama_cpp.llama_tokenize(self._open, data, len(data), buffer, n_max, False, parse_special)
            if n >= 0:
                return list(buffer[:n])
            n_max = -n
        raise BackendError(f"llama.cpp could not tokenize a text of {len(data)} bytes (it answered {n})")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token: often a part of a character only, so feed them to a `TextStream`.

        Args:
            token: an id of the vocabulary.
            special: whether a special token gives its text; without it, it gives nothing.

        Raises:
            ValueError: if the vocabulary has no such token.
        """
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_tokens} tokens")
        n_max = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n_max)
            n = llama_cpp.llama_token_to_piece(self._open, token, buffer, n_max, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            n_max = -n
        raise BackendError(f"llama.cpp gave no text for token {token} (it answered {n})")

    def image_token(self, token: int) -> int:
        """The token that stands for an image; outside the vocabulary of a text file that knows none.

        A grafted text model may have another token in its place: `<|im_start|>`, say, which its makers added.

        Args:
            token: its id in the models that the mmproj was made for.
        """
        return token if self.special_tokens.get(IMAGE_TOKEN) == token else max(token, self.n_tokens)

    def is_unused(self, token: int) -> bool:
        """Whether a token of the vocabulary only fills a row of the embedding (`[PAD128257]`)."""
        return bool(llama_cpp.llama_vocab_get_attr(self._open, token) & llama_cpp.LLAMA_TOKEN_ATTR_UNUSED)

    def _tokens_with(self, predicate: Any) -> Iterable[int]:
        # no loop of Python's own: a real vocabulary has 128 thousand tokens, and a program waits for it at its start
        tokens = range(self.n_tokens)
        return itertools.compress(tokens, map(predicate, itertools.repeat(self._open), tokens))

    @staticmethod
    def _or_none(token: int) -> int | None:
        return token if token >= 0 else None
