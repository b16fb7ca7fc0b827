"""A draft without a second model: what followed the last few tokens when they stood there before."""

from collections.abc import Sequence

from pyvllama.draft import Draft
from pyvllama.errors import ConfigError

__all__ = ["PromptLookup"]


class PromptLookup(Draft):
    """Guesses that a text repeats itself: answers that quote the question, an earlier answer, or a list's own pattern.

    The longest ending of the text that occurs earlier in it counts, and of its occurrences the latest. Takes
    time in proportion to the text (0.2 ms for 4000 tokens); it guesses nothing where nothing is repeated. (Prompt
    lookup decoding, A. Saxena, 2023.)

    Args:
        n_max: tokens that are guessed at a time, at most.
        longest, shortest: tokens that the ending has. Short ones are found more often and are wrong more often.

    Raises:
        ConfigError: they are not 1 <= shortest <= longest.
    """

    def __init__(self, n_max: int, *, longest: int = 8, shortest: int = 3) -> None:
        super().__init__(n_max)
        if not 1 <= shortest <= longest:
            raise ConfigError(f"endings must have 1 <= shortest <= longest tokens, not {shortest} and {longest}")
        self._sizes = range(longest, shortest - 1, -1)

    def propose(self, tokens: Sequence[int], n: int) -> list[int]:
        """See Draft. A repetition that reaches up to the end is taken to go on: after `a b c a b c` come `a b c`."""
        text = "".join(map(chr, tokens))  # a string is the fastest thing to search in; any id is below chr's limit
        for size in self._sizes:
            if size >= len(tokens):
                continue
            at = text.rfind(text[-size:], 0, len(text) - 1)
            if at >= 0:
                found = list(tokens[at + size : at + size + n])
                period = len(tokens) - size - at
                while len(found) < n:
                    found.append(found[len(found) - period])
                return found
        return []
