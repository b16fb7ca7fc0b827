"""The async twin of LLM: same methods, awaited; calls queue up instead of being refused."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyvllama.errors import BackendError, VllamaError
from pyvllama.llm import LLM, Message
from pyvllama.loading import load

__all__ = ["AsyncLLM"]

T = TypeVar("T")
_END: Any = object()


class AsyncLLM:
    """A loaded model for asyncio: `async with await AsyncLLM.load(...) as llm`.

    The work happens on a thread of its own, one call after another. A task that is cancelled while it waits for an
    answer stops the computation, in the middle of a prompt too.

    Args:
        llm: not to be used by others any more.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyvllama")
        self._turn = asyncio.Lock()
        self._closed = False

    @classmethod
    async def load(
        cls, model: str | Path | None = None, mmproj: str | Path | None = None, **options: Any
    ) -> "AsyncLLM":
        """As `pyvllama.load`, without blocking the event loop."""
        return cls(await asyncio.to_thread(load, model, mmproj, **options))

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def chat(self, messages: Sequence[Message], *, stream: bool = False, **options: Any) -> Any:
        """As `LLM.chat`; with stream an async iterator of chunks, which may be abandoned at any of them.

        Other calls wait until a stream has ended or was closed (`aclose`, or its last reference gone).
        """
        if stream:
            return self._chunks(messages, options)
        async with self._turn:
            return await self._run(lambda: self.llm.chat(messages, **options))

    async def chat_many(
        self, conversations: Iterable[Sequence[Message]], **options: Any
    ) -> AsyncIterator[tuple[int, dict[str, Any] | VllamaError]]:
        """As `LLM.chat_many`, an async iterator, which may be abandoned at any answer. Other calls wait for its end."""
        async with self._turn:
            answers = await self._run(lambda: self.llm.chat_many(conversations, **options))
            while (answer := await self._run(lambda: next(answers, _END))) is not _END:
                yield answer

    async def logits(self, messages: Sequence[Message]) -> npt.NDArray[np.float32]:
        """As `LLM.logits`."""
        async with self._turn:
            return await self._run(lambda: self.llm.logits(messages))

    async def encode_image(self, image: Any) -> npt.NDArray[np.float32]:
        """As `LLM.encode_image`."""
        async with self._turn:
            return await self._run(lambda: self.llm.encode_image(image))

    async def save_session(self, path: str | Path) -> None:
        """As `LLM.save_session`. A task that is cancelled meanwhile ends when the file is written."""
        async with self._turn:
            await self._run(lambda: self.llm.save_session(path))

    async def load_session(self, path: str | Path) -> int:
        """As `LLM.load_session`."""
        async with self._turn:
            return await self._run(lambda: self.llm.load_session(path))

    async def close(self) -> None:
        """Free everything, once what runs has ended. Idempotent."""
        async with self._turn:
            self._closed = True
            await asyncio.to_thread(self.llm.close)
            self._thread.shutdown(wait=False)

    async def _chunks(self, messages: Sequence[Message], options: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._turn:
            chunks: Iterator[dict[str, Any]] = await self._run(lambda: self.llm.chat(messages, stream=True, **options))
            while (chunk := await self._run(lambda: next(chunks, _END))) is not _END:
                yield chunk

    async def _run(self, call: Callable[[], T]) -> T:
        """A call on the thread. If the waiting task is cancelled, the call is stopped before that goes on."""
        if self._closed:
            raise BackendError("the model is closed")
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                self.llm.cancel()  # again: the first may have come before the call had begun
                await asyncio.wait([future], timeout=0.05)
            future.exception()  # seen; what counts is the task's being cancelled
            raise
