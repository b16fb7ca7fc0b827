"""Many conversations through one batch: `LLM.chat_many`."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyvllama.answer_text import AnswerText
from pyvllama.batching import Batcher, Request
from pyvllama.chat_options import ChatOptions
from pyvllama.completion import Completion, Delta
from pyvllama.context import Context, ContextParams
from pyvllama.errors import BackendError, Cancelled, ConfigError, VllamaError
from pyvllama.model import Model
from pyvllama.prompt_cells import read_prompt
from pyvllama.sampler import Sampled, Sampler
from pyvllama.types import FinishReason, Timings, Usage
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
    """

    def __init__(self, model: Model, images: VisionCache, params: ContextParams, options: ChatOptions) -> None:
        if options.n != 1:
            raise ConfigError("chat_many gives one answer a conversation: n must be 1")
        self._model = model
        self._images = images
        self._params = params
        self._options = options
        self._ended: deque[Answer] = deque()

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Answer]:
        """See `LLM.chat_many`. May be abandoned at any answer."""
        context = Context(self._model, self._params)
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
                batcher.step()
                while self._ended:
                    yield self._ended.popleft()
        finally:
            batcher.close()
            context.close()

    def _start(self, batcher: Batcher, index: int, messages: Conversation) -> None:
        answer = _Running(self._model, self._options)
        try:
            prompt = read_prompt(self._model, self._images, messages, answer.timings, tools=self._options.tools)
            sampler = Sampler(self._model, self._options.params, self._options.constraint)
            answer.usage.prompt_tokens = len(prompt)
            request = Request(
                prompt,
                sampler,
                self._options.params.max_tokens,
                answer.take,
                lambda how: self._ended.append((index, answer.end(how))),
            )
            batcher.start(request)
            answer.begin()
            answer.timings.prompt_n = request.n_prompt
        except _ALL_OF_US:
            raise
        except VllamaError as e:
            self._ended.append((index, e))


class _Running:
    """An answer while it is generated."""

    def __init__(self, model: Model, options: ChatOptions) -> None:
        self.timings, self.usage = Timings(), Usage()
        self._completion = Completion(model.name, model.tokenizer, self.timings, self.usage, options)
        self._text = AnswerText(model.tokenizer, options.params.stop)
        self._deltas: list[Delta] = []
        self._mark = 0.0

    def begin(self) -> None:
        """The prompt is being computed from now on; its pictures are encoded."""
        self._mark = time.perf_counter()

    def take(self, sampled: Sampled) -> bool:
        """A token; True if the answer ends with it."""
        now = time.perf_counter()
        elapsed, self._mark = 1000 * (now - self._mark), now
        if self.usage.completion_tokens == 0:
            self.timings.prompt_ms = elapsed
        else:
            self.timings.predicted_ms += elapsed
        self.usage.completion_tokens += 1
        self.timings.predicted_n += 1
        self._deltas.append(self._text.take(sampled))
        return self._deltas[-1].finish_reason is not None

    def end(self, how: FinishReason | VllamaError) -> dict[str, Any] | VllamaError:
        """The whole answer, or why there is none."""
        if isinstance(how, VllamaError):
            return how
        if not self._deltas or self._deltas[-1].finish_reason is None:
            self._deltas.append(self._text.end(how))
        return self._completion.whole(self._deltas)
