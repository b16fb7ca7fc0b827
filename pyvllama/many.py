"""Many conversations through one batch: `LLM.chat_many`."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyvllama.batching import Batcher
from pyvllama.chat_options import ChatOptions
from pyvllama.completion import Completion, Delta
from pyvllama.context import Context, ContextParams
from pyvllama.errors import BackendError, Cancelled, ConfigError, VllamaError
from pyvllama.model import Model
from pyvllama.prompt_cells import read_prompt, without_oldest_turns
from pyvllama.running import Running
from pyvllama.sampler import Sampler
from pyvllama.types import Timings, Usage
from pyvllama.vision_cache import VisionCache

__all__ = ["Many"]

Conversation = Sequence[Mapping[str, Any]]
Answer = tuple[int, dict[str, Any] | VllamaError]
_ALL_OF_US = (BackendError, Cancelled)
"""What is no fault of a single conversation: it ends the run."""


class Many:
    """A run over many conversations; used once.

    Args:
        model: loaded.
        images: encodes.
        params: of the context that is made for it; n_seq_max is how many run at a time.
        options: for all of them; n must be 1.
        context_shift: leave the oldest turns away where a conversation does not fit.
    """

    def __init__(
        self,
        model: Model,
        images: VisionCache,
        params: ContextParams,
        options: ChatOptions,
        *,
        context_shift: bool = False,
    ) -> None:
        if options.n != 1:
            raise ConfigError("chat_many gives one answer a conversation: n must be 1")
        self._model = model
        self._images = images
        self._params = params
        self._options = options
        self._context_shift = context_shift
        self._context: Context | None = None
        self._cancelled = False
        self._ended: deque[Answer] = deque()

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Answer]:
        """See `LLM.chat_many`. May be abandoned at any answer."""
        context = self._context = Context(self._model, self._params)
        batcher = Batcher(context)
        try:
            waiting = enumerate(conversations)
            more = True
            while more or self._ended or not batcher.is_idle:
                while more and batcher.n_free:
                    following = next(waiting, None)
                    more = following is not None
                    if following is not None:
                        self._start(batcher, *following)
                self._go_on()
                batcher.step()
                while self._ended:
                    yield self._ended.popleft()
                    self._go_on()
        finally:
            batcher.close()
            context.close()

    def cancel(self) -> None:
        """From another thread: the run ends soon with Cancelled."""
        self._cancelled = True
        if self._context is not None:
            self._context.interrupt(True)

    def _go_on(self) -> None:
        if self._cancelled:
            raise Cancelled("the answers were cancelled")

    def _start(self, batcher: Batcher, index: int, messages: Conversation) -> None:
        timings, usage, deltas = Timings(), Usage(), list[Delta]()
        completion = Completion(self._model.name, self._model.tokenizer, timings, usage, self._options)

        def receive(piece: Delta | VllamaError) -> None:
            if isinstance(piece, VllamaError):
                self._ended.append((index, piece))
                return
            deltas.append(piece)
            if piece.finish_reason is not None:
                self._ended.append((index, completion.whole(deltas)))

        tools, max_tokens = self._options.tools, self._options.params.max_tokens
        try:
            if self._context_shift:
                messages, completion.dropped_turns = without_oldest_turns(
                    self._model, messages, batcher.context.n_ctx, max_tokens, tools=tools
                )
            prompt = read_prompt(
                self._model,
                self._images,
                messages,
                timings,
                tools=tools,
                progress=lambda _: False if self._cancelled else None,
            )
            sampler = Sampler(self._model, self._options.params, self._options.constraint)
            usage.prompt_tokens = len(prompt)
            params = self._options.params
            running = Running(prompt, sampler, params, self._model.tokenizer, 0, timings, usage, receive)
            batcher.start(running.request)
        except _ALL_OF_US:
            raise
        except VllamaError as e:
            self._ended.append((index, e))
