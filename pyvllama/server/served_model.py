"""A loaded model with the engine that answers for it, for asyncio."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyvllama.chat_options import ChatOptions
from pyvllama.context import Context, ContextParams
from pyvllama.engine import Engine
from pyvllama.errors import BackendError, Cancelled, ConfigError, DeadlineExceeded, QueueFull
from pyvllama.gguf_file import GGUFFile
from pyvllama.image.limits import ImageLimits
from pyvllama.loading import load_as
from pyvllama.model import Model
from pyvllama.placement import gpu_bytes
from pyvllama.prompt_cells import (
    ReadPrompt,
    read_messages_and_pictures,
    read_text_and_pictures,
    without_oldest_turns,
)
from pyvllama.sampler import Sampler
from pyvllama.server.answer import Answer
from pyvllama.vision_cache import VisionCache

__all__ = ["ServedModel"]

_N_READERS = 4
_DEFAULT_LIMITS = ImageLimits()


class ServedModel:
    """A pair, its context of several sequences, and the threads that feed it. `close` is idempotent.

    Prompts are read (rendered, pictures fetched and decoded) on some threads, pictures are encoded on another one, one
    at a time and beside the engine's.

    Args:
        name: what it is asked for by.
        model: loaded; closed with this.
        params: of the context; n_seq_max answers are generated at a time, and share n_ctx positions.
        images: the cache that encodes.
        max_queue: requests that may wait beside those n_seq_max.
        grammars: whether requests may bring grammars, JSON schemas and tools: small ones can take llama.cpp minutes.

    Attributes:
        load_ms: what loading took.
        gpu_bytes: how much of the weights is on GPUs.
        on_answered: called with each answer when nothing of it runs any more, for statistics.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        params: ContextParams,
        images: VisionCache,
        *,
        max_queue: int | None = None,
        grammars: bool = True,
    ) -> None:
        self.name, self.model, self.images = name, model, images
        self.load_ms = 0.0
        self.gpu_bytes = _gpu_bytes(model)
        self.on_answered: Callable[[Answer], object] | None = None
        context = Context(model, params)
        self.n_ctx = context.n_ctx
        self.engine = Engine(context)
        self._max_open = None if max_queue is None else params.n_seq_max + max_queue
        self._grammars = grammars
        self._n_open = 0
        self._readers = ThreadPoolExecutor(_N_READERS, thread_name_prefix="pyvllama-read")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="pyvllama-encode")
        self._is_closed = False

    @classmethod
    def load(
        cls,
        name: str,
        model: str | Path | None,
        mmproj: str | Path | None = None,
        *,
        n_slots: int = 4,
        max_queue: int | None = None,
        grammars: bool = True,
        **options: Any,
    ) -> "ServedModel":
        """Load a model; as `pyvllama.load` beside n_slots, the answers at a time, and what this class takes."""
        start = time.perf_counter()

        def make(loaded: Model, params: ContextParams, images: VisionCache) -> "ServedModel":
            params = replace(params, n_seq_max=n_slots)
            return cls(name, loaded, params, images, max_queue=max_queue, grammars=grammars)

        served = load_as(make, model, mmproj, **options)
        served.load_ms = 1000 * (time.perf_counter() - start)
        return served

    @property
    def n_slots(self) -> int:
        """Answers that are generated at a time."""
        return self.engine.n_slots

    @property
    def n_open(self) -> int:
        """Requests that have not ended, those that wait among them."""
        return self._n_open

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: ChatOptions,
        *,
        limits: ImageLimits = _DEFAULT_LIMITS,
        reuse: bool = True,
        deadline_s: float | None = None,
        context_shift: bool = False,
    ) -> Answer:
        """Answer a conversation. All that is wrong with the request itself shows here, before the first piece.

        Args:
            messages: see `LLM.chat`.
            options: see `ChatOptions`.
            limits: on the pictures.
            reuse: whether positions that the context holds already may be used again.
            deadline_s: for all of it, from now on.
            context_shift: see `LLM.chat`.

        Raises:
            PromptError, ContextOverflow, ImageError, ConfigError: as `LLM.chat`; ConfigError also for a grammar where
            none may come. QueueFull: too many wait already.
            BackendError: the model is closed.
        """
        dropped: list[int] = []

        def read() -> ReadPrompt:
            kept = messages
            if context_shift:
                kept, n = without_oldest_turns(
                    self.model, messages, self.n_ctx, options.params.max_tokens, tools=options.tools
                )
                dropped.append(n)
            return read_messages_and_pictures(self.model, kept, tools=options.tools, limits=limits, n_ctx=self.n_ctx)

        answer = await self._open(read, options, reuse, deadline_s)
        answer.completion.dropped_turns = dropped[0] if dropped else None
        return answer

    async def complete(
        self,
        prompt: str | Sequence[int],
        options: ChatOptions,
        *,
        images: Sequence[Any] = (),
        limits: ImageLimits = _DEFAULT_LIMITS,
        reuse: bool = True,
        deadline_s: float | None = None,
    ) -> Answer:
        """Go on with a text, or token ids, without a template; see `read_text_and_pictures`. As `chat` otherwise."""

        def read() -> ReadPrompt:
            return read_text_and_pictures(self.model, prompt, images, limits=limits, n_ctx=self.n_ctx)

        return await self._open(read, options, reuse, deadline_s)

    async def close(self) -> None:
        """End everything with Cancelled and free the model."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.engine.close()  # first: then the encoder stops at once, too
        self._readers.shutdown(cancel_futures=True)
        self._encoder.shutdown(cancel_futures=True)
        self.images.clear()
        self.model.close()

    async def _open(
        self,
        read: Callable[[], ReadPrompt],
        options: ChatOptions,
        reuse: bool,
        deadline_s: float | None,
    ) -> Answer:
        if self._is_closed:
            raise BackendError("the model is closed")
        if not self._grammars and options.constraint is not None and not options.constraint.is_own:
            raise ConfigError("this server takes no grammars, JSON schemas and tools from its clients (--no-grammars)")
        if self._max_open is not None and self._n_open >= self._max_open:
            raise QueueFull(f"{self._n_open} requests are being answered or wait: try again later")
        loop = asyncio.get_running_loop()
        start = loop.time()
        reading = loop.run_in_executor(self._readers, self._prepared, read, options)
        self._n_open += 1
        try:
            prompt, samplers = await asyncio.wait_for(reading, deadline_s)
        except BaseException as e:
            self._n_open -= 1
            if isinstance(e, asyncio.CancelledError) and reading.cancelled() and self._is_closed:
                raise Cancelled("the model was closed") from e
            if isinstance(e, asyncio.TimeoutError):
                raise DeadlineExceeded(f"the request's pictures were not there after {deadline_s:g} seconds") from e
            raise
        return Answer(
            self.name,
            self.model,
            options,
            prompt,
            samplers,
            self.engine,
            self.images,
            self._encoder,
            reuse=reuse,
            deadline_s=None if deadline_s is None else deadline_s - (loop.time() - start),
            on_close=self._ended,
        )

    def _prepared(self, read: Callable[[], ReadPrompt], options: ChatOptions) -> tuple[ReadPrompt, list[Sampler]]:
        samplers: list[Sampler] = []
        try:
            for choice in range(options.n):  # first: what is wrong with a grammar costs no download
                samplers.append(Sampler(self.model, options.params_of(choice), options.constraint))  # noqa: PERF401
            return read(), samplers
        except BaseException:
            for sampler in samplers:
                sampler.close()
            raise

    def _ended(self, answer: Answer) -> None:
        self._n_open -= 1
        if self.on_answered is not None:
            self.on_answered(answer)


def _gpu_bytes(model: Model) -> int:
    if not model.placement.gpus:
        return 0
    files = GGUFFile(model.text_path), GGUFFile(model.mmproj_path)
    text, mmproj = ({name: tensor.n_bytes for name, tensor in file.tensors.items()} for file in files)
    return gpu_bytes(model.placement, text, mmproj, model.hparams["cross_attention_layers"])
