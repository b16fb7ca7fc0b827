"""From the tokens of an answer to the pieces that are shown, and to its end."""

from pyvllama.completion import Delta
from pyvllama.sampler import Sampled
from pyvllama.stream import TextStream
from pyvllama.tokenizer import Tokenizer
from pyvllama.types import FinishReason

__all__ = ["AnswerText"]


class AnswerText:
    """One answer while it is generated. Knows when an end token or a stop string has ended it.

    Args:
        tokenizer: for the bytes and end tokens.
        stop: strings that end the answer.
        choice: which of several answers.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], choice: int = 0) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(stop)
        self._choice = choice

    def take(self, sampled: Sampled) -> Delta:
        """The piece that a token gives; with `finish_reason` "stop" if the answer ends with it."""
        if sampled.token in self._tokenizer.eog:
            return Delta(self._choice, self._text.finish(), (), "stop")
        text = self._text.feed(self._tokenizer.piece(sampled.token))
        return Delta(self._choice, text, (sampled,), "stop" if self._text.stopped else None)

    def end(self, reason: FinishReason) -> Delta:
        """What was held back, where something else has ended the answer."""
        return Delta(self._choice, self._text.finish(), (), reason)
