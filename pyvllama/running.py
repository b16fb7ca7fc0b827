"""One answer while a batch generates it: its pieces, its end, its share of the costs."""

import time
from collections.abc import Callable, Sequence

from pyvllama.answer_text import AnswerText
from pyvllama.batching import Request
from pyvllama.completion import Delta
from pyvllama.errors import VllamaError
from pyvllama.sampler import Sampled, Sampler
from pyvllama.session import Cell
from pyvllama.tokenizer import Tokenizer
from pyvllama.types import FinishReason, SamplingParams, Timings, Usage

__all__ = ["Running"]


class Running:
    """What a `Request` tells of itself.

    Args:
        prompt, sampler, reuse: see `Request`.
        params: of the answer.
        tokenizer, choice: see `AnswerText`.
        timings, usage: grow as it goes; answers to the same prompt may share them.
        receive: called with each piece; the last one has a finish_reason, or is the error that ended it.

    Attributes:
        request: to be given to a batcher or an engine.
    """

    def __init__(
        self,
        prompt: Sequence[Cell],
        sampler: Sampler,
        params: SamplingParams,
        tokenizer: Tokenizer,
        choice: int,
        timings: Timings,
        usage: Usage,
        receive: Callable[[Delta | VllamaError], object],
        *,
        reuse: bool = True,
    ) -> None:
        self.request = Request(prompt, sampler, params.max_tokens, self._take, self._end, self._start, reuse)
        self._text = AnswerText(tokenizer, params.stop, choice)
        self._timings, self._usage = timings, usage
        self._receive = receive
        self._mark = 0.0
        self._ended = False

    def _start(self) -> None:
        self._mark = time.perf_counter()

    def _take(self, sampled: Sampled) -> bool:
        now = time.perf_counter()
        elapsed, self._mark = 1000 * (now - self._mark), now
        if self.request.n_tokens == 1:
            self._timings.prompt_ms += elapsed
            self._timings.prompt_n += self.request.n_prompt
        else:
            self._timings.predicted_ms += elapsed
        self._timings.predicted_n += 1
        self._usage.completion_tokens += 1
        delta = self._text.take(sampled)
        self._ended = delta.finish_reason is not None
        self._receive(delta)
        return self._ended

    def _end(self, how: FinishReason | VllamaError) -> None:
        if isinstance(how, VllamaError):
            self._receive(how)
        elif not self._ended:
            self._receive(self._text.end(how))
