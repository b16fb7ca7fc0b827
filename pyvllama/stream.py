"""Bytes of tokens in, text that may be shown out.

A token is bytes, not text: a character can be spread over several tokens, and so can a stop string. `TextStream` holds
back what cannot be shown yet. It knows no model, and how its input is cut into pieces never changes the text.
"""

import codecs
from collections.abc import Sequence

from pyvllama.errors import PromptError

__all__ = ["TextStream"]


class _Matcher:
    """Knuth-Morris-Pratt: how much of `pattern` the text read so far ends with."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.n_matched = 0
        self._fallback = [0] * len(pattern)  # [i]: longest proper prefix of pattern that pattern[: i + 1] ends with
        n = 0
        for i in range(1, len(pattern)):
            while n and pattern[i] != pattern[n]:
                n = self._fallback[n - 1]
            n += pattern[i] == pattern[n]
            self._fallback[i] = n

    def advance(self, char: str) -> bool:
        """Read one character; true when the pattern is complete with it. Not to be called again after that."""
        n = self.n_matched
        while n and char != self.pattern[n]:
            n = self._fallback[n - 1]
        self.n_matched = n + (char == self.pattern[n])
        return self.n_matched == len(self.pattern)


class TextStream:
    """A state machine from token bytes to text, which ends at the first stop string.

    The text equals `data.decode("utf-8", errors="replace")` of all bytes, cut before the stop string that is complete
    first (of two that end together, the longer one): invalid bytes become U+FFFD. No delta holds a part of a character
    or a part of a stop string that may still become complete. Not thread-safe.

    Args:
        stop: strings that end the text; they are not part of it.

    Raises:
        PromptError: if a stop string is empty or no string.
    """

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        stop = [stop] if isinstance(stop, str) else list(stop)
        for i, pattern in enumerate(stop):
            if not isinstance(pattern, str) or not pattern:
                raise PromptError(f"stop[{i}] is {pattern!r}: a stop string is a string of at least one character")
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_Matcher(pattern) for pattern in sorted(set(stop), key=len, reverse=True)]
        self._held = ""
        self._finished = False
        self._matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; all that is fed afterwards is ignored."""
        return self._matched is not None

    @property
    def matched(self) -> str | None:
        """The stop string that was found, None so far."""
        return self._matched

    def feed(self, piece: bytes) -> str:
        """Add the bytes of one token (or any number of bytes); returns the text that can be shown now, often empty.

        Raises:
            ValueError: after `finish`.
        """
        if self._finished:
            raise ValueError("the stream is finished: a new text needs a new TextStream")
        if self.stopped:
            return ""
        return self._add(self._decoder.decode(piece))

    def finish(self) -> str:
        """End the text; returns what was held back (an unfinished character as U+FFFD), once."""
        if self._finished or self.stopped:
            self._finished = True
            return ""
        self._finished = True
        text = self._add(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _add(self, text: str) -> str:
        """Append decoded text; returns what can no longer belong to a stop string."""
        if not self._matchers:
            return text
        for i, char in enumerate(text):
            for matcher in self._matchers:  # longest first
                if matcher.advance(char):
                    self._matched = matcher.pattern
                    shown = (self._held + text[: i + 1])[: -len(matcher.pattern)]
                    self._held = ""
                    return shown
        shown = self._held + text
        n_held = max(matcher.n_matched for matcher in self._matchers)
        self._held = shown[len(shown) - n_held :]
        return shown[: len(shown) - n_held]
