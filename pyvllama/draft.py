"""Speculative decoding: somebody guesses the next tokens, the model judges them all in one batch.

A batch of several rows costs less than as many batches of one, so right guesses save time and wrong ones lose it. What
the answer says does not depend on them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pyvllama.session import Cell, Session
from pyvllama.types import Timings

__all__ = ["Draft", "Speculation"]


class Draft(ABC):
    """Guesses how a text goes on. Used by one thread at a time, but for `interrupt`.

    Args:
        n_max: tokens that are guessed at a time, at most.
    """

    def __init__(self, n_max: int) -> None:
        self.n_max = n_max

    @abstractmethod
    def propose(self, tokens: Sequence[int], n: int) -> Sequence[int]:
        """The tokens that probably follow.

        Args:
            tokens: prompt and answer so far, in ids of the model that judges; not to be changed. A picture is one
                token, of whatever id: what is in it is not known here.
            n: how many are wanted, 1 to n_max. Fewer are fine, and none where nothing can be told.

        Raises:
            BackendError, Cancelled, KeyboardInterrupt: the computation failed or was stopped.
        """

    def interrupt(self, on: bool) -> None:  # noqa: B027  not every draft computes for long
        """From another thread: while it is on, a running `propose` ends with Cancelled."""

    def close(self) -> None:  # noqa: B027  not every draft holds something
        """Free everything. Idempotent."""


class Speculation:
    """One answer's way through a session, with guesses decoded ahead of it.

    Args:
        session: prefilled.
        draft: guesses; None: nothing is guessed.
        timings: with a draft, `draft_n` and `draft_n_accepted` grow as it goes.
    """

    def __init__(self, session: Session, draft: Draft | None, timings: Timings) -> None:
        self._session = session
        self._draft = draft
        self._timings = timings
        self._tokens = [] if draft is None else [cell.token for cell in session.cells]
        if draft is not None:
            timings.draft_n, timings.draft_n_accepted = timings.draft_n or 0, timings.draft_n_accepted or 0

    def append(self, token: int, n_left: int | None) -> int:
        """Make a token part of the session: decode it, unless that was done already on a guess.

        Args:
            token: of the answer.
            n_left: tokens that the answer can still have behind it; None: as many as the context.

        Returns:
            The row of the context's last batch whose logits can now be sampled.

        Raises:
            As `Session.append` and `Draft.propose`.
        """
        if self._draft is None:
            return self._session.append(Cell(token))
        self._tokens.append(token)
        row = self._session.take_guess(Cell(token))
        if row is not None:
            self._timings.draft_n_accepted = (self._timings.draft_n_accepted or 0) + 1
            return row
        guesses = self._guesses(self._draft, n_left)
        row = self._session.append(Cell(token), guesses)
        self._timings.draft_n = (self._timings.draft_n or 0) + len(guesses)
        return row

    def _guesses(self, draft: Draft, n_left: int | None) -> list[Cell]:
        """Those that an answer can have; an end is never decoded, nor what is guessed behind it."""
        context = self._session.context
        # One less than there is room for: behind the last token of an answer nothing is sampled.
        room = [draft.n_max, context.n_batch - 1, self._session.n_left - 1]
        n = min(room if n_left is None else [*room, n_left - 1])
        if n < 1:
            return []
        model = context.model
        barred = {model.image_token, *model.tokenizer.eog}
        cells: list[Cell] = []
        for token in draft.propose(self._tokens, n)[:n]:
            if not 0 <= token < model.n_vocab or token in barred:
                break
            cells.append(Cell(int(token)))
        return cells
