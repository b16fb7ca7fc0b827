"""One conversation on a context: which token and image stands at each position, and what the KV cache holds of it."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama.context import Context, Row
from pyvllama.errors import ContextOverflow, PromptError
from pyvllama.image_groups import image_groups, next_group

__all__ = ["Cell", "Planned", "Session", "common_prefix", "require_room"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One position: a token and, where the token stands for an image, that image's ImageStates.

    Equal cells with equal cells before them have equal states: what the KV cache holds of them can be used again.
    Images are compared by identity: the vision cache gives the same picture the same ImageStates.
    """

    token: int
    image: Any = None


@dataclass(frozen=True, slots=True)
class Planned:
    """Cells that a batch is going to decode for a session: their rows, and what each sees."""

    cells: Sequence[Cell]
    rows: list[Row]
    groups: list[tuple[Any, ...]]

    def part(self, first: int, last: int) -> "Planned":
        """Those from first to before last."""
        return Planned(self.cells[first:last], self.rows[first:last], self.groups[first:last])


class Session:
    """One sequence of a context. Not thread-safe.

    Args:
        context: shared with other sessions, each on a sequence of its own.
        seq: the sequence.
    """

    def __init__(self, context: Context, seq: int = 0) -> None:
        self.context = context
        self.seq = seq
        self._cells: list[Cell] = []
        self._groups: list[tuple[Any, ...]] = []  # what each position sees
        self._ahead: tuple[int, Planned] | None = None  # first position and rows of the last `append`, guesses included

    @property
    def n_past(self) -> int:
        """Positions in the KV cache."""
        return len(self._cells)

    @property
    def cells(self) -> Sequence[Cell]:
        """What stands at each position."""
        return tuple(self._cells)

    @property
    def n_left(self) -> int:
        """Positions that the context has room for."""
        return self.context.n_ctx - self.n_past

    def prefill(self, prompt: Sequence[Cell]) -> int:
        """Make the prompt the whole content of the sequence; its last row's logits can then be sampled.

        The longest common beginning with what is there is kept, except for the last position, which is decoded anew.

        Args:
            prompt: at least one cell.

        Returns:
            Number of positions decoded.

        Raises:
            PromptError: an empty prompt.
            ContextOverflow: the prompt has more positions than the context; nothing has changed.
            BackendError, KeyboardInterrupt: see `Context.decode`; what was decoded before stays valid.
        """
        require_room(len(prompt), self.context.n_ctx)
        same = self.common_prefix(prompt)
        self.truncate(same)
        for _ in self._extend(prompt[same:]):
            pass
        return len(prompt) - same

    def common_prefix(self, prompt: Sequence[Cell]) -> int:
        """How many positions at the beginning of a prompt are there already, see `common_prefix`."""
        return common_prefix(self._cells, prompt)

    def adopt(self, other: "Session", n: int) -> None:
        """Have the first n positions of another session on the same context; they share their memory."""
        self.truncate(0)
        self.context.copy(other.seq, self.seq, n)
        self._groups.extend(other._groups[:n])
        self._cells.extend(other._cells[:n])

    def plan(self, cells: Sequence[Cell], wanted: Container[int] | None = None) -> Planned:
        """Rows that decode more cells; nothing has changed yet. See `commit`.

        Args:
            cells: that follow what is there.
            wanted: positions whose logits are computed; None: of the last cell.
        """
        first = self.n_past
        if wanted is None:
            wanted = (first + len(cells) - 1,)
        rows, groups = [], []
        seen = self._groups[first - 1] if first else ()
        before = self._cells[-1] if self._cells else None
        for position, cell in enumerate(cells, first):
            seen = next_group(seen, before is not None and before.image is not None, cell.image)
            before = cell
            groups.append(seen)
            rows.append(Row(cell.token, position, seen, self.seq, position in wanted))
        return Planned(cells, rows, groups)

    def commit(self, planned: Planned) -> None:
        """The planned rows were decoded."""
        del self._groups[self.n_past :]
        self._groups.extend(planned.groups)
        self._cells.extend(planned.cells)  # last: n_past, which everything goes by, grows when all is in place

    def append(self, cell: Cell, guesses: Sequence[Cell] = ()) -> int:
        """Decode one more position, and with it guesses of what follows.

        Guesses are no part of the session: n_past and cells do not count them. One after another they become it by
        `take_guess`; whatever else happens to the session, they are forgotten.

        Args:
            cell: the next position.
            guesses: without images, and no more than n_batch of the context with the cell.

        Returns:
            The row of the context's last batch whose logits can now be sampled.

        Raises:
            ContextOverflow: the context is full. BackendError, KeyboardInterrupt: see `Context.decode`.
        """
        if self.n_left < 1 + len(guesses):
            raise ContextOverflow(f"the context of {self.context.n_ctx} positions is full")
        if self._ahead is not None:
            self.truncate(self.n_past)
        first = self.n_past
        planned = self.plan((cell, *guesses), range(first, self.context.n_ctx))
        self.context.decode(planned.rows)
        if guesses:
            self._ahead = first, planned
        self.commit(planned.part(0, 1))
        return 0

    def take_guess(self, cell: Cell) -> int | None:
        """Make the next guess of the last `append` a position of the session, if this cell was guessed.

        Returns:
            As `append`; None: something else was guessed, or nothing.
        """
        if self._ahead is None:
            return None
        first, planned = self._ahead
        row = self.n_past - first
        if planned.cells[row : row + 1] != (cell,):
            return None
        self.commit(planned.part(row, row + 1))
        return row

    def logits(self, prompt: Sequence[Cell]) -> npt.NDArray[np.float32]:
        """Decode the prompt from the start and return every row's logits.

        Returns:
            float32 [number of cells, n_tokens of the vocabulary].
        """
        return np.concatenate(list(self.logits_of(prompt, range(len(prompt)))))

    def logits_of(self, prompt: Sequence[Cell], rows: Container[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Decode the prompt from the start and yield logits of some rows, batch by batch.

        Args:
            prompt: at least one cell.
            rows: positions; only for these the head's product, a large one, is computed.

        Yields:
            float32 [number of rows in the batch, n_tokens of the vocabulary], at most n_batch rows.
        """
        require_room(len(prompt), self.context.n_ctx)
        self.truncate(0)
        yield from self._extend(prompt, rows, collect=True)

    def read(self, prompt: Sequence[Cell]) -> None:
        """Decode the prompt from the start, every row down to its logits; the last row's can then be sampled.

        For collectors: of rows whose logits nobody wants, llama.cpp leaves out a part of the last layer.
        """
        require_room(len(prompt), self.context.n_ctx)
        self.truncate(0)
        for _ in self._extend(prompt, range(len(prompt))):
            pass

    def truncate(self, n: int) -> None:
        """Forget all positions from n on."""
        # Always: an interrupt between decoding and noting it down leaves rows in the KV cache that no list knows of.
        self.context.remove(self.seq, n)
        self._ahead = None
        del self._cells[n:], self._groups[n:]

    def kv_state(self) -> npt.NDArray[np.uint8]:
        """What the KV cache holds of these cells, see `Context.kv_state`."""
        self.truncate(self.n_past)
        return self.context.kv_state(self.seq)

    def restore(self, cells: Sequence[Cell], kv_state: npt.NDArray[np.uint8]) -> bool:
        """Make these cells the whole content, with what the KV cache held of them.

        Returns:
            Whether llama.cpp took it, see `Context.set_kv_state`; if not, the session is empty.
        """
        self.truncate(0)
        if not self.context.set_kv_state(self.seq, kv_state):
            return False
        self._groups.extend(image_groups([cell.image for cell in cells]))
        self._cells.extend(cells)
        return True

    def close(self) -> None:
        """Let go of the images; the context is closed by who made it."""
        self._cells.clear()
        self._groups.clear()
        self._ahead = None

    def _extend(
        self, cells: Sequence[Cell], wanted: Container[int] | None = None, *, collect: bool = False
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Decode more cells. wanted: positions whose logits are computed; None: of the last cell."""
        if wanted is None:
            wanted = (self.n_past + len(cells) - 1,)
        for start in range(0, len(cells), self.context.n_batch):
            planned = self.plan(cells[start : start + self.context.n_batch], wanted)
            logits = self.context.decode(planned.rows, collect=collect)
            self.commit(planned)
            yield logits


def common_prefix(held: Sequence[Cell], prompt: Sequence[Cell]) -> int:
    """How many positions both begin with; never all of the prompt: its last is decoded anew, for its logits."""
    same, most = 0, min(len(held), len(prompt) - 1)
    while same < most and prompt[same] == held[same]:
        same += 1
    return same


def require_room(n: int, n_ctx: int) -> None:
    """Refuse a prompt of n positions that cannot be read.

    Raises:
        PromptError: an empty one. ContextOverflow: one longer than the context.
    """
    if n == 0:
        raise PromptError("the prompt is empty")
    if n > n_ctx:
        raise ContextOverflow(
            f"the prompt has {n} tokens, the context {n_ctx}: shorten the conversation or load the "
            "model with a larger n_ctx (--ctx-size)"
        )
