"""Many answers at once on one context: requests join and leave the running batch at any token.

Each step decodes one batch: a row of every answer that is being generated, and as much of the newer prompts as there is
room for. Knows token ids only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyvllama.context import Context
from pyvllama.errors import ContextOverflow, VllamaError
from pyvllama.sampler import Sampled, Sampler
from pyvllama.session import Cell, Planned, Session
from pyvllama.types import FinishReason

__all__ = ["Batcher", "Request"]


@dataclass(eq=False)
class Request:
    """One answer to be generated.

    Attributes:
        prompt: at least one cell.
        sampler: chooses the tokens; the batcher closes it.
        max_tokens: tokens to generate at most; None: until the context is full.
        on_token: called with each token, the end token too; True ends the answer.
        on_end: called once, with how the answer ended or why there is none.
        n_prompt: positions that were decoded of the prompt, those that others had already left out.
    """

    prompt: Sequence[Cell]
    sampler: Sampler
    max_tokens: int | None
    on_token: Callable[[Sampled], bool]
    on_end: Callable[[FinishReason | VllamaError], None]
    n_prompt: int = 0
    n_tokens: int = 0


@dataclass(eq=False)
class _Slot:
    """A sequence of the context and the request that it serves."""

    session: Session
    request: Request | None = None
    todo: Sequence[Cell] = ()  # not decoded yet: of the prompt, or the token sampled last
    age: int = 0  # when it was used last, in requests
    paused: bool = False  # until there is room again


class Batcher:
    """Runs requests on a context that nobody else uses. Not thread-safe.

    Args:
        context: with as many sequences as there shall be answers at a time.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._slots = [_Slot(Session(context, seq)) for seq in range(context.n_seq_max)]
        self._clock = 0

    @property
    def n_free(self) -> int:
        """Requests that could start now."""
        return sum(slot.request is None for slot in self._slots)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.n_free == len(self._slots)

    def start(self, request: Request) -> None:
        """Give a request a slot; one must be free. What another slot holds of its beginning is used again.

        Raises:
            ContextOverflow: its prompt is longer than the whole context. PromptError: it is empty.
        """
        self._slots[0].session.require_room(len(request.prompt))
        self._clock += 1
        free = sorted((s for s in self._slots if s.request is None), key=lambda s: s.age)
        donor = max(self._slots, key=lambda s: (s.session.common_prefix(request.prompt), s.request is None))
        n = donor.session.common_prefix(request.prompt)
        if n == 0 or donor.request is None:
            slot = donor if n else free[0]
        else:
            slot = free[0]
            slot.session.adopt(donor.session, n)
        slot.session.truncate(n)
        slot.request, slot.age = request, self._clock
        slot.todo = request.prompt[n:]
        request.n_prompt = len(slot.todo)

    def step(self) -> None:
        """Decode one batch and sample from it.

        Raises:
            BackendError, KeyboardInterrupt: see `Context.decode`; the requests are as they were before.
        """
        planned = self._plan()
        if not planned:
            return
        try:
            self.context.decode([row for _, plan in planned for row in plan.rows])
        except ContextOverflow as e:
            self._overflow(e)
            return
        end = 0
        for slot, plan in planned:
            end += len(plan.rows)
            slot.session.commit(plan)
            slot.todo = slot.todo[len(plan.rows) :]
            if not slot.todo:
                self._sample(slot, end - 1)

    def close(self) -> None:
        """Let go of everything but the context."""
        for slot in self._slots:
            if slot.request is not None:
                slot.request.sampler.close()
                slot.request = None
            slot.session.close()

    def _plan(self) -> list[tuple[_Slot, Planned]]:
        """The rows of the next batch: of those who generate first, then of prompts, older ones first."""
        planned: list[tuple[_Slot, Planned]] = []
        room = self.context.n_batch
        active = [s for s in self._slots if s.request is not None and not s.paused]
        for slot in sorted(active, key=lambda s: (len(s.todo) > 1, s.age)):
            cells = slot.todo[:room]
            if not cells:
                break
            # llama.cpp takes token ids or embeddings in a batch: an image that is no token of the vocabulary goes alone
            if (n := self._n_tokens_before_embedding(cells)) is not None:
                if n == 0 and planned:
                    continue
                cells = cells[: max(n, 1)]
            wanted = None if len(cells) == len(slot.todo) else ()
            planned.append((slot, slot.session.plan(cells, wanted)))
            room -= len(cells)
            if n == 0:
                break
        return planned

    def _n_tokens_before_embedding(self, cells: Sequence[Cell]) -> int | None:
        n_tokens = self.context.model.tokenizer.n_tokens
        return next((i for i, cell in enumerate(cells) if cell.token >= n_tokens), None)

    def _overflow(self, failure: ContextOverflow) -> None:
        """Give up something: what an idle slot holds, or else the youngest request, which begins again later."""
        idle = [s for s in self._slots if s.request is None and s.session.n_past]
        if idle:
            min(idle, key=lambda s: s.age).session.truncate(0)
            return
        running = [s for s in self._slots if s.request is not None and not s.paused]
        youngest = max(running, key=lambda s: s.age)
        if len(running) > 1:
            youngest.todo = (*youngest.session.cells, *youngest.todo)
            youngest.session.truncate(0)
            youngest.paused = True
        else:
            assert youngest.request is not None
            self._end(youngest, "length" if youngest.request.n_tokens else failure)

    def _sample(self, slot: _Slot, row: int) -> None:
        request = slot.request
        assert request is not None
        sampled = request.sampler.sample(self.context, row)
        request.n_tokens += 1
        if request.on_token(sampled) or sampled.token in self.context.model.tokenizer.eog:
            self._end(slot, "stop")
        elif request.n_tokens == request.max_tokens or slot.session.n_left < 1:
            self._end(slot, "length")
        else:
            slot.todo = (Cell(sampled.token),)

    def _end(self, slot: _Slot, how: FinishReason | VllamaError) -> None:
        request, slot.request, slot.todo = slot.request, None, ()
        assert request is not None
        request.sampler.close()
        if paused := [s for s in self._slots if s.paused]:
            min(paused, key=lambda s: s.age).paused = False
        request.on_end(how)
