"""Many answers at once on one context: requests join and leave the running batch at any token.

Each step decodes one batch: a row of every answer that is being generated, and as much of the newer prompts as there is
room for. Knows token ids only.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyvllama.context import Context
from pyvllama.errors import BackendError, Cancelled, ContextOverflow, VllamaError
from pyvllama.sampler import Sampled, Sampler
from pyvllama.session import Cell, Planned, Session, common_prefix, require_room
from pyvllama.types import FinishReason

__all__ = ["Batcher", "Request"]

logger = logging.getLogger("pyvllama")

_WORTH_WAITING = 16  # positions that another request is about to compute, too


@dataclass(eq=False)
class Request:
    """One answer to be generated.

    Attributes:
        prompt: at least one cell.
        sampler: chooses the tokens; the batcher closes it.
        max_tokens: tokens to generate at most; None: until the context is full.
        on_token: called with each token, the end token too; True ends the answer.
        on_end: called once, with how the answer ended or why there is none.
        on_start: called when it gets its slot; what is computed from then on is its own.
        reuse: whether what the context holds of the prompt's beginning may be used again.
        n_prompt: positions that were decoded of the prompt, those that others had already left out.
    """

    prompt: Sequence[Cell]
    sampler: Sampler
    max_tokens: int | None
    on_token: Callable[[Sampled], bool]
    on_end: Callable[[FinishReason | VllamaError], None]
    on_start: Callable[[], None] = lambda: None
    reuse: bool = True
    n_prompt: int = 0
    n_tokens: int = 0

    def end(self, how: FinishReason | VllamaError) -> None:
        """It has ended; called once. What its receiver raises is logged: it must not harm the others."""
        self.sampler.close()
        try:
            self.on_end(how)
        except Exception:
            logger.exception("the receiver of an answer failed")


@dataclass(eq=False)
class _Slot:
    """A sequence of the context and the request that it serves."""

    session: Session
    request: Request | None = None
    todo: Sequence[Cell] = ()  # not decoded yet: of the prompt, or the token sampled last
    age: int = 0  # when it was used last, in requests
    paused: bool = False  # until there is room again
    leader: Request | None = None  # has the same beginning and is at it: wait for that
    n_led: int = 0  # positions that are the same


class Batcher:
    """Runs requests on a context that nobody else uses. Not thread-safe.

    Args:
        context: with as many sequences as there shall be answers at a time.
        n_prompt_beside: rows of prompts that a step takes while answers are being generated: these go on, at the price
            of a slower prompt. None: as many as there is room for.

    Attributes:
        n_steps, n_busy: batches decoded, and requests in them, summed up.
    """

    def __init__(self, context: Context, n_prompt_beside: int | None = None) -> None:
        self.context = context
        self._n_prompt_beside = n_prompt_beside or context.n_batch
        self._slots = [_Slot(Session(context, seq)) for seq in range(context.n_seq_max)]
        self._clock = 0
        self.n_steps = self.n_busy = 0

    @property
    def n_free(self) -> int:
        """Requests that could start now."""
        return sum(slot.request is None for slot in self._slots)

    @property
    def n_active(self) -> int:
        """Requests that have a slot."""
        return len(self._slots) - self.n_free

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.n_active == 0

    def start(self, request: Request) -> None:
        """Give a request a slot; one must be free. What another slot holds of its beginning is used again.

        Raises:
            ContextOverflow: its prompt is longer than the whole context. PromptError: it is empty.
        """
        require_room(len(request.prompt), self.context.n_ctx)
        self._clock += 1
        donor, n = self._donor(request)
        slot = self._place(donor, n)
        if donor is not slot and n:
            slot.session.adopt(donor.session, n)
        slot.session.truncate(n)
        slot.request, slot.age = request, self._clock
        slot.todo = request.prompt[n:]
        slot.leader, slot.n_led = self._leader(slot) if request.reuse else (None, 0)
        request.n_prompt = len(slot.todo)
        request.on_start()

    def cancel(self, request: Request) -> bool:
        """End a request with Cancelled, if it has a slot; what was computed for it can be used again."""
        for slot in self._slots:
            if slot.request is request:
                self._end(slot, Cancelled("the request was cancelled"))
                return True
        return False

    def fail(self, failure: VllamaError) -> None:
        """End all requests: the context cannot go on with them."""
        for slot in self._slots:
            if slot.request is not None:
                self._end(slot, failure)
            slot.session.truncate(0)

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
        self.n_steps += 1
        self.n_busy += len(planned)
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

    def _donor(self, request: Request) -> tuple[_Slot, int]:
        """The slot that holds most of a prompt's beginning, and how many positions."""
        if not request.reuse:
            return self._slots[0], 0
        common = [(slot.session.common_prefix(request.prompt), slot.request is None) for slot in self._slots]
        best = max(range(len(common)), key=lambda i: common[i])
        return self._slots[best], common[best][0]

    def _place(self, donor: _Slot, n: int) -> _Slot:
        """A free slot: the donor's own if nothing is lost there, else the one that was not used for longest."""
        free = sorted((s for s in self._slots if s.request is None), key=lambda s: (s.session.n_past > 0, s.age))
        if n and donor.request is None and (len(free) == 1 or donor.session.n_past <= n + 1):
            return donor
        return next((s for s in free if s is not donor or n == 0), free[0])

    def _leader(self, slot: _Slot) -> tuple[Request | None, int]:
        """A request that is at the same beginning, and how many positions they share."""
        request = slot.request
        assert request is not None
        best, most = None, slot.session.n_past + _WORTH_WAITING
        for other in self._slots:
            if other.request is None or other is slot or other.paused or not other.request.reuse:
                continue
            n = common_prefix(other.request.prompt, request.prompt)
            if n >= most and other.session.n_past < n:
                best, most = other.request, n + 1
        return best, most - 1

    def _must_wait(self, slot: _Slot) -> bool:
        """Whether a slot with a leader must wait; if not, it takes over what there is of its beginning."""
        leader = next((s for s in self._slots if s.request is slot.leader and not s.paused), None)
        request = slot.request
        assert request is not None
        if leader is not None and leader.session.n_past < slot.n_led and len(leader.todo) > 1:
            return True
        slot.leader = None
        donor, n = self._donor(request)
        if n > slot.session.n_past:
            request.n_prompt -= n - slot.session.n_past
            slot.session.adopt(donor.session, n)
            slot.todo = request.prompt[n:]
        return False

    def _plan(self) -> list[tuple[_Slot, Planned]]:
        """The rows of the next batch: of those who generate first, then of prompts, older ones first."""
        planned: list[tuple[_Slot, Planned]] = []
        active = [s for s in self._slots if s.request is not None and not s.paused]
        active = [s for s in active if s.leader is None or not self._must_wait(s)]
        n_generating = sum(len(s.todo) == 1 for s in active)
        room = self.context.n_batch
        if n_generating:
            room = min(room, n_generating + self._n_prompt_beside)
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
        try:
            sampled = request.sampler.sample(self.context, row)
            request.n_tokens += 1
            is_end = request.on_token(sampled)
        except Exception as e:
            self._end(slot, BackendError.of(e))
            return
        if is_end or sampled.token in self.context.model.tokenizer.eog:
            self._end(slot, "stop")
        elif request.n_tokens == request.max_tokens or slot.session.n_left < 1:
            self._end(slot, "length")
        else:
            slot.todo = (Cell(sampled.token),)

    def _end(self, slot: _Slot, how: FinishReason | VllamaError) -> None:
        request, slot.request, slot.todo, slot.leader = slot.request, None, (), None
        slot.paused = False
        assert request is not None
        if paused := [s for s in self._slots if s.paused]:
            min(paused, key=lambda s: s.age).paused = False
        request.end(how)
