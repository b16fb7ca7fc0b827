"""The answers to one request, as they come out of the engine, for asyncio."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from types import TracebackType

from starlette.requests import Request as HttpRequest

from pyvllama.batching import Request
from pyvllama.chat_options import ChatOptions
from pyvllama.completion import Completion, Delta
from pyvllama.engine import Engine
from pyvllama.errors import BackendError, Cancelled, DeadlineExceeded, VllamaError
from pyvllama.model import Model
from pyvllama.prompt_cells import ReadPrompt
from pyvllama.running import Running
from pyvllama.sampler import Sampler
from pyvllama.session import Cell
from pyvllama.types import Timings, Usage
from pyvllama.vision_cache import VisionCache

__all__ = ["Answer"]

_LOOK_S = 0.5  # between two looks at whether a client is still there


class Answer:
    """An async iterator of the pieces of all choices, mixed as they come; an async context manager.

    Belongs to the event loop that it is made on. Whoever leaves it before its end must call `aclose` (or use `async
    with`): what still runs is then cancelled.

    Made, it is under way: its pictures are encoded, then its requests are queued, both in the background.

    Args:
        name: what the client calls the model.
        model: with its tokenizer.
        options: of the request.
        prompt: its pictures are read.
        samplers: one a choice; they are closed with the answer.
        engine: generates.
        images: encodes, on the encoder's threads.
        reuse: whether positions that the context holds already may be used again.
        deadline_s: seconds until it fails with DeadlineExceeded.
        on_close: called once with the answer, when nothing of it runs any more.

    Attributes:
        usage, timings: grow; final with the last piece. prompt_ms and predicted_ms are sums over the choices.
        completion: OpenAI's shapes of it.
        options: of the request.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        options: ChatOptions,
        prompt: ReadPrompt,
        samplers: list[Sampler],
        engine: Engine,
        images: VisionCache,
        encoder: Executor,
        *,
        reuse: bool,
        deadline_s: float | None,
        on_close: Callable[["Answer"], object],
    ) -> None:
        self.usage = Usage(prompt_tokens=len(prompt.token_ids))
        self.timings = Timings()
        self.options = options
        self.completion = Completion(name, model.tokenizer, self.timings, self.usage, options)
        self._tokenizer = model.tokenizer
        self._engine = engine
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[Delta | VllamaError] = deque()
        self._news = asyncio.Event()
        self._is_woken = False
        self._requests: list[Request] = []
        self._n_left = options.n  # choices that have not ended
        self._is_closed = False
        self._timer = None if deadline_s is None else self._loop.call_later(deadline_s, self._expire, deadline_s)
        self._task = self._loop.create_task(self._run(prompt, samplers, images, encoder, reuse))

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[Delta]:
        async for batch in self.batches():
            for delta in batch:
                yield delta

    async def batches(self, idle_s: float | None = None) -> AsyncIterator[list[Delta]]:
        """All the pieces that are there, again and again; at least one each time.

        Args:
            idle_s: after so many seconds without a piece an empty list comes, for a sign of life to the client.

        Raises:
            BackendError, Cancelled, DeadlineExceeded: what ended the answer.
        """
        n_ended = 0
        while n_ended < self.options.n:
            batch = self._taken()
            n_ended += sum(delta.finish_reason is not None for delta in batch)
            if batch or not await self._has_news(idle_s):
                yield batch
        await self.aclose()

    async def whole(self, request: HttpRequest | None = None) -> list[Delta]:
        """All pieces, once the last is there.

        Args:
            request: whose client is waiting; if it goes away, the answer is cancelled.

        Raises:
            As `batches`; Cancelled, too, if the client has gone.
        """
        async with self:
            deltas: list[Delta] = []
            looked = self._loop.time()
            async for batch in self.batches(None if request is None else _LOOK_S):
                deltas += batch
                if request is None or (batch and self._loop.time() - looked < _LOOK_S):
                    continue
                looked = self._loop.time()
                if await request.is_disconnected():
                    raise Cancelled("the client has gone")
            return deltas

    async def __aenter__(self) -> "Answer":
        return self

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what still runs; slots are free after the step that is being computed. Idempotent."""
        self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._n_left > 0:
            for request in self._requests:
                self._engine.cancel(request)
        if self._task.done():
            self._on_close(self)  # else the task does it, when the encoder is free again

    def _taken(self) -> list[Delta]:
        """The pieces that are there; if there is an error, all before it first."""
        batch: list[Delta] = []
        while self._pieces:
            if isinstance(self._pieces[0], VllamaError):
                if batch:
                    break
                failure = self._pieces.popleft()
                assert isinstance(failure, VllamaError)
                self._close()
                raise failure
            piece = self._pieces.popleft()
            assert isinstance(piece, Delta)
            batch.append(piece)
        return batch

    async def _has_news(self, idle_s: float | None) -> bool:
        self._news.clear()
        self._is_woken = False  # before the look: whatever comes after it wakes us
        if self._pieces:
            return True
        try:
            await asyncio.wait_for(self._news.wait(), idle_s)
        except asyncio.TimeoutError:
            return False
        return True

    def _receive(self, piece: Delta | VllamaError) -> None:
        """From the engine's thread, or the loop's."""
        if isinstance(piece, VllamaError) or piece.finish_reason is not None:
            self._n_left -= 1
        self._pieces.append(piece)
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(self._news.set)

    def _expire(self, deadline_s: float) -> None:
        self._close()
        self._pieces.clear()
        self._receive(DeadlineExceeded(f"the answer was not complete after {deadline_s:g} seconds"))

    async def _run(
        self, prompt: ReadPrompt, samplers: list[Sampler], images: VisionCache, encoder: Executor, reuse: bool
    ) -> None:
        try:
            cells = await self._encoded(prompt, images, encoder)
            del prompt  # its pictures are large
            if self._is_closed:
                return
            for choice, sampler in enumerate(samplers):
                running = Running(
                    cells,
                    sampler,
                    self.options.params,
                    self._tokenizer,
                    choice,
                    self.timings,
                    self.usage,
                    self._receive,
                    reuse=reuse,
                )
                self._engine.submit(running.request)
                self._requests.append(running.request)
        except Exception as e:  # whoever waits must learn of it
            self._receive(BackendError.of(e))
        finally:
            for sampler in samplers[len(self._requests) :]:
                sampler.close()
            if self._is_closed:
                for request in self._requests:
                    self._engine.cancel(request)
                self._on_close(self)

    async def _encoded(self, prompt: ReadPrompt, images: VisionCache, encoder: Executor) -> list[Cell]:
        def progress(_: float) -> bool:
            return not (self._is_closed or self._engine.is_closed)

        if not prompt.pictures:
            return prompt.encoded(images, self.timings)
        try:
            return await self._loop.run_in_executor(encoder, prompt.encoded, images, self.timings, progress)
        except (asyncio.CancelledError, RuntimeError, Cancelled) as e:  # the executor is, or was, shut down
            if not self._engine.is_closed:
                raise
            raise Cancelled("the model was closed") from e
