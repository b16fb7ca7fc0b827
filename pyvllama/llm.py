"""The public object: a loaded pair that chats, gives logits and encodes images."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama.answer_text import AnswerText
from pyvllama.chat_options import ChatOptions
from pyvllama.completion import Completion, Delta
from pyvllama.context import Context, ContextParams
from pyvllama.draft import Draft
from pyvllama.errors import BackendError, Cancelled, VllamaError
from pyvllama.generation import generate
from pyvllama.grammar import Constraint
from pyvllama.image.source import load_image
from pyvllama.image.tiling import preprocess
from pyvllama.many import Many
from pyvllama.model import Model
from pyvllama.prompt_cells import read_prompt, without_oldest_turns
from pyvllama.sampler import Sampler
from pyvllama.session import Cell, Session
from pyvllama.session_file import load_session, save_session
from pyvllama.types import SamplingParams, Timings, Usage
from pyvllama.vision_cache import VisionCache

__all__ = ["LLM", "Message", "Progress"]

Message = Mapping[str, Any]
Progress = Callable[[float], bool | None]


class LLM:
    """A loaded model with one conversation's worth of context. Made by `load`; a context manager.

    One call at a time: a call that begins while another thread (or a callback of the same one) is in the middle of one
    raises BackendError. A stream that is still open when another call begins ends with BackendError.
    """

    def __init__(self, model: Model, params: ContextParams, images: VisionCache, draft: Draft | None = None) -> None:
        self.model = model
        self._draft = draft
        self._params = params
        self._session = Session(Context(model, params))
        self._images = images
        self._cancelled = False
        self._runs: list[Many] = []  # of chat_many; changed and copied in one step each, for other threads
        self._turn = 0  # of the call that may use the session
        self._lock = threading.Lock()  # held while llama.cpp computes

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free everything. Idempotent; any other method then raises BackendError."""
        with self._exclusive():
            self._turn += 1
            self._session.close()
            self._session.context.close()
            if self._draft is not None:
                self._draft.close()
            self._images.clear()
            self.model.close()

    @property
    def n_ctx(self) -> int:
        """Positions of the context."""
        return self._session.context.n_ctx

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        n: int = 1,
        logprobs: bool = False,
        top_logprobs: int | None = None,
        logit_bias: Mapping[Any, float] | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        image_progress: Progress | None = None,
        context_shift: bool = False,
    ) -> Any:
        """Answer a conversation.

        Args:
            messages: OpenAI's: `{"role": ..., "content": str | parts}` with parts `{"type": "text", "text": ...}`,
                `{"type": "image_url", "image_url": {"url": path, http(s) or data: URI}}` and, in Python,
                `{"type": "image", "image": PIL image, array [h, w, 3] uint8, bytes or path}`.
            stream: yield chunks instead of returning the whole.
            max_tokens, temperature, top_p, top_k, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed,
                stop: see SamplingParams; None takes the model's own default.
            n: answers, one after another; with a seed the i-th has seed + i.
            logprobs: log-probabilities of the answer's tokens, by the model's logits before any option changes them.
            top_logprobs: and those of so many of the likeliest tokens at each place.
            logit_bias: token id -> what is added to its logit.
            response_format: OpenAI's: text, json_object, or json_schema.
            grammar: llama.cpp's GBNF, instead of a response_format.
            tools: OpenAI's function descriptions. Meta says of Llama 3.2 Vision that tools do not work with an image in
                the prompt: a call is well-formed all the same, whether it makes sense is another matter.
            tool_choice: "auto" (the default), "none", "required", or a function: `{"type": "function", "function":
                {"name": ...}}`.
            image_progress: called with the fraction of an image's encoding; returning False stops with Cancelled.
            context_shift: leave the oldest turns away, each whole, if the conversation would not fit into the context
                with room for the answer: max_tokens, but at most half of the context; without max_tokens an eighth of
                it. System messages and the last turn stay.

        Returns:
            OpenAI's `chat.completion` object as a dict, with `timings` beside `usage`, and with context_shift
            `dropped_turns`, the number of those left away. With stream an iterator of
            `chat.completion.chunk` dicts: the first has the role, the last `finish_reason`, `usage` and `timings`. It
            may be abandoned at any chunk.

        Raises:
            PromptError: messages that make no prompt. ContextOverflow: a prompt longer than the context.
            ImageError: an image that cannot be read. ConfigError: an option out of range, or no grammar.
            BackendError: the computation failed, or the model is closed. Cancelled: `cancel` was called.
        """
        options = ChatOptions.from_options(
            self.model.sampling_defaults,
            {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": min_p,
                "repeat_penalty": repeat_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "seed": seed,
                "stop": stop,
                "n": n,
                "logprobs": logprobs,
                "top_logprobs": top_logprobs,
                "logit_bias": logit_bias,
                "response_format": response_format,
                "grammar": grammar,
                "tools": tools,
                "tool_choice": tool_choice,
            },
        )
        timings, usage = Timings(), Usage()
        completion = Completion(self.model.name, self.model.tokenizer, timings, usage, options)
        with self._exclusive():
            self._begin()
            if context_shift:
                messages, completion.dropped_turns = without_oldest_turns(
                    self.model, messages, self.n_ctx, options.params.max_tokens, tools=options.tools
                )
            prompt = self._cells(messages, timings, image_progress, tools=options.tools)
            usage.prompt_tokens = len(prompt)
            if options.constraint is not None or options.params.logit_bias:
                Sampler(self.model, options.params, options.constraint).close()  # what is wrong shows before the prompt
            self._prefill(prompt, timings)
            deltas = self._choices(prompt, options, timings, usage)
            if not stream:
                return completion.whole(deltas)
            return completion.chunks(self._stream(deltas, self._turn))

    def chat_many(
        self,
        conversations: Iterable[Sequence[Message]],
        *,
        n_parallel: int = 4,
        n_ctx: int | None = None,
        context_shift: bool = False,
        **options: Any,
    ) -> Iterator[tuple[int, dict[str, Any] | VllamaError]]:
        """Answer many conversations, several at a time: faster than one after another.

        They run on a context of their own; pictures that several have in common are encoded once, beginnings that they
        share computed once. Each answer is what it would be alone, up to the rounding of larger batches.

        Args:
            conversations: taken as they are needed.
            n_parallel: how many at a time.
            n_ctx: positions that they have together; None: as many as this model was loaded with.
            context_shift: as for `chat`, where one alone would not fit.
            options: as for `chat`, but stream and n.

        Yields:
            (index, `chat.completion` object, or what went wrong with this one), in the order in which they end.

        Raises:
            ConfigError: an option out of range. BackendError, Cancelled: as `chat`.
        """
        chosen = ChatOptions.from_options(self.model.sampling_defaults, options)
        params = replace(self._params, n_ctx=n_ctx or self._params.n_ctx, n_seq_max=n_parallel)
        return self._run(Many(self.model, self._images, params, chosen, context_shift=context_shift), conversations)

    def _run(
        self, many: Many, conversations: Iterable[Sequence[Message]]
    ) -> Iterator[tuple[int, dict[str, Any] | VllamaError]]:
        self._runs.append(many)
        try:
            yield from many.run(conversations)
        finally:
            self._runs.remove(many)

    def cancel(self) -> None:
        """From another thread: calls that are under way end soon with Cancelled, in the middle of a prompt, too.

        So do runs of `chat_many`, all of them; one that nobody waits for ends when its next answer is asked for.
        """
        self._cancelled = True
        self._interrupt(True)
        for many in tuple(self._runs):
            many.cancel()

    def logits(self, messages: Sequence[Message]) -> npt.NDArray[np.float32]:
        """Logits of every row of the rendered prompt, for evaluation.

        Returns:
            float32 [n_tokens, n_vocab]; row i predicts token i + 1. n_vocab are lm_head's rows: the image token and the
            padding behind it have no column.

        Raises:
            As `chat`.
        """
        with self._exclusive():
            self._begin()
            logits: npt.NDArray[np.float32] = self._session.logits(self._cells(messages, Timings(), None))
            return logits[:, : self.model.n_vocab]

    def encode_image(self, image: Any) -> npt.NDArray[np.float32]:
        """The cross_attention_states of an image: what the text model's cross-attention layers see.

        Args:
            image: path, http(s) or data: URI, bytes, PIL image or uint8 array [h, w, 3].

        Returns:
            float32 [n_tiles, n_positions, n_embd] of the real tiles; position 0 of a tile is its class token.

        Raises:
            ImageError: an image that cannot be read. BackendError: the computation failed.
        """
        tiles = preprocess(load_image(image), self.model.preprocessor)
        self.model.handle  # noqa: B018  raises when closed
        _, states, _ = self.model.mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id, want_states=True)
        assert states is not None
        return states

    def save_session(self, path: str | Path) -> None:
        """Write what the context holds to a file: the KV cache and the images, none of which is then computed again.

        Messages are not in it, they are the caller's. The file tells what was said and seen: only its owner can read
        it.

        Args:
            path: replaced at once if it exists, when all is written.

        Raises:
            ConfigError: it cannot be written. BackendError: the model is closed, or in the middle of another call.
        """
        with self._exclusive():
            self.model.handle  # noqa: B018  raises when closed
            save_session(path, self._session, self._images)

    def load_session(self, path: str | Path) -> int:
        """Put what `save_session` wrote in place of what the context holds.

        The next `chat` decodes only what differs from it, as if it had been said here; its answers are the same to the
        last bit. Its pictures need not be encoded again as long as image_cache_bytes has room for them.

        Returns:
            Number of positions that the context holds then.

        Raises:
            FormatError: the file is no session, damaged, or was saved with another model or other options; the context
                is as it was. ContextOverflow: it has more positions than n_ctx. BackendError: as `save_session`.
        """
        with self._exclusive():
            self.model.handle  # noqa: B018  raises when closed
            self._begin()
            return load_session(path, self._session, self._images)

    def _begin(self) -> None:
        """A new call has the session; what came before it is over, and so is its cancelling."""
        self._turn += 1
        self._cancelled = False
        self._interrupt(False)

    def _interrupt(self, on: bool) -> None:
        self._context.interrupt(on)
        if self._draft is not None:
            self._draft.interrupt(on)

    @property
    def _context(self) -> Context:
        return self._session.context

    def _cells(
        self,
        messages: Sequence[Message],
        timings: Timings,
        progress: Progress | None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Cell]:
        def encoding(fraction: float) -> bool | None:
            return False if self._cancelled else progress(fraction) if progress is not None else None

        return read_prompt(self.model, self._images, messages, timings, tools=tools, progress=encoding)

    def _prefill(self, prompt: Sequence[Cell], timings: Timings) -> None:
        start = time.perf_counter()
        timings.prompt_n += self._session.prefill(prompt)
        timings.prompt_ms += 1000 * (time.perf_counter() - start)

    def _exclusive(self) -> threading.Lock:
        """The lock, if nobody holds it.

        A bare lock: Ctrl-C cannot come between `with` and a lock's own methods, but into a context manager of ours.
        """
        if self._lock.locked():
            raise BackendError("this model is in the middle of another call: it takes one at a time")
        return self._lock

    def _stream(self, deltas: Iterator[Delta], turn: int) -> Iterator[Delta]:
        while True:
            with self._exclusive():
                self.model.handle  # noqa: B018  raises when closed
                if turn != self._turn:
                    raise BackendError("another call on this model has begun since: this stream cannot go on")
                delta = next(deltas, None)
            if delta is None:
                return
            yield delta

    def _choices(self, prompt: Sequence[Cell], options: ChatOptions, timings: Timings, usage: Usage) -> Iterator[Delta]:
        """The pieces of all answers; the prompt of the first is prefilled."""
        for choice in range(options.n):
            if choice:
                self._prefill(prompt, timings)
            yield from self._deltas(choice, options.params_of(choice), options.constraint, timings, usage)

    def _deltas(
        self, choice: int, params: SamplingParams, constraint: Constraint | None, timings: Timings, usage: Usage
    ) -> Iterator[Delta]:
        answer = AnswerText(self.model.tokenizer, params.stop, choice)
        for sampled in generate(self._session, params, timings, constraint, self._draft):
            usage.completion_tokens += 1
            if self._cancelled:
                raise Cancelled("the answer was cancelled")
            delta = answer.take(sampled)
            yield delta
            if delta.finish_reason:
                return
        yield answer.end("length")
