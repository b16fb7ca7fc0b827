"""llama_cpp.Llama with eyes: programs written for llama-cpp-python change one import.

How: llama_cpp.Llama keeps the tokens that its context holds in `input_ids`, and reuses the context as far as these are
those of a new prompt. An image's place in that list is a negative number that stands for the picture (see `ImageIds`),
so that whatever compares, copies, caches or cuts the list does the right thing for pictures, too. What a row sees
follows from the list alone, so nothing else has to be kept in step with it.
"""

import contextlib
import ctypes
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama._runtime import default_n_threads, llama_cpp, native, set_fields
from pyvllama.errors import BackendError
from pyvllama.image.limits import ImageLimits
from pyvllama.image.source import load_images
from pyvllama.image_groups import next_group
from pyvllama.integrations.chat_handler import ChatHandler
from pyvllama.integrations.eyes import Eyes
from pyvllama.integrations.from_hub import fetch_files
from pyvllama.integrations.image_ids import ImageIds
from pyvllama.locate import pocket_pair
from pyvllama.prompt import build_prompt
from pyvllama.resolve import resolve
from pyvllama.template import ChatTemplate
from pyvllama.tokenizer import Tokenizer

__all__ = ["Llama"]

_DEFAULT_LIMITS = ImageLimits()
_PIXEL_BYTES = 256 << 20


class Llama(llama_cpp.Llama):  # type: ignore[misc]  # llama_cpp is not looked into
    """A llama_cpp.Llama that sees images. Like that, not thread-safe.

    Args:
        model_path: the text GGUF, or anything else that `pyvllama.load` takes; None: the bundled pocket model.
        mmproj_path: the mmproj file; None: the one that belongs to the text file.
        cross_kv_type: type of the images' keys and values: f16, bf16, f32 or q8_0.
        image_cache_bytes: memory for encoded images that may come again.
        image_limits: which pictures are taken, and from where; a server refuses files.
        options: all of llama_cpp.Llama's. With `vocab_only` there is no mmproj. A `chat_handler` of your own also gets
            the chats with images. With `n_gpu_layers` other than 0 the mmproj is on the GPU, too.

    `create_chat_completion` takes images as `LLM.chat` does: OpenAI's `image_url` parts with a path, an http(s) address
    or a data: URI, and `{"type": "image", "image": ...}`. Chats without images, and all else, are llama_cpp.Llama's own
    code. In lists of tokens (`input_ids`, what logits processors are given) an image is a negative number. What
    `save_state` returns holds the pictures and can be loaded in another process.

    Raises:
        ModelNotFound, FormatError, ConfigError, BackendError: as `pyvllama.load`.
        PromptError, ImageError: from a chat with images.
        What llama_cpp.Llama raises: ValueError, RuntimeError.
    """

    chat_handler: Any
    n_tokens: int

    def __init__(
        self,
        model_path: str | Path | None,
        mmproj_path: str | Path | None = None,
        *,
        cross_kv_type: str = "f16",
        image_cache_bytes: int = 512 << 20,
        image_limits: ImageLimits = _DEFAULT_LIMITS,
        **options: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()  # so that close works whatever fails from here on
        self._eyes: Eyes | None = None
        self._hook: Any = None
        self._images = ImageIds(_PIXEL_BYTES)
        self._limits = image_limits
        self._states: dict[int, Any] = {}  # of the images that the last rows saw: a small cache keeps none
        self._image_options: dict[str, Any] = {
            "mmproj_path": mmproj_path,
            "cross_kv_type": cross_kv_type,
            "image_cache_bytes": image_cache_bytes,
            "image_limits": image_limits,
        }
        model_path = pocket_pair().text if model_path is None else model_path
        if not options.get("vocab_only"):
            llama_cpp._logger.set_verbose(options.get("verbose", True))  # the mmproj is loaded as quietly as the rest
            pair = resolve(model_path, mmproj_path)
            model_path, self._image_options["mmproj_path"] = pair.text, str(pair.mmproj)
            n_threads = options.get("n_threads") or default_n_threads()
            n_threads_batch = options.get("n_threads_batch") or n_threads
            self._eyes = Eyes(
                pair,
                n_gpu_layers=options.get("n_gpu_layers", 0),
                n_threads=n_threads_batch,
                cross_kv_type=cross_kv_type,
                cache_bytes=image_cache_bytes,
            )
            # llama_cpp.Llama takes all processors for prompts where the options say nothing
            self._hook = native.DecodeHook(
                self._eyes.mmproj, n_threads=max(n_threads, n_threads_batch, os.cpu_count() or 1)
            )
        super().__init__(str(model_path), **options)
        self._tokenizer = Tokenizer(self._model.vocab)
        self._template: ChatTemplate | None = None
        self._image_token = self._n_vocab
        if self._eyes is not None:
            self._image_token = self._tokenizer.image_token(self._eyes.image_token_id)
            self._template = self._eyes.template(self._tokenizer)
            if self.chat_handler is None:
                self.chat_handler = ChatHandler()

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | Path | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | Path | None = None,
        *,
        mmproj_filename: str | None = None,
        **options: Any,
    ) -> "Llama":
        """As llama_cpp.Llama's: fetch a model from the Hub and load it; with its mmproj.

        Args:
            repo_id: `user/repo`.
            filename: of the text file, or a pattern such as `*Q4_K_M.gguf`, which no mmproj fits; all parts of a split
                file are fetched. None: as `pyvllama pull` chooses.
            additional_files: names or patterns of more files, each of one.
            local_dir: put the files there instead of into the Hub's cache.
            local_dir_use_symlinks: no longer of any effect.
            cache_dir: another place for the Hub's cache.
            mmproj_filename: name or pattern of the mmproj; None: the one that belongs to the text file. None is
                fetched where there is an `mmproj_path` among the options, or `vocab_only`.
            options: of the constructor.

        Raises:
            ValueError: a pattern fits no file, or several.
            ModelNotFound: the repository or its mmproj cannot be had. And what the constructor raises.
        """
        wants_mmproj = options.get("mmproj_path") is None and not options.get("vocab_only")
        text, mmproj = fetch_files(
            repo_id, filename, additional_files, mmproj_filename, local_dir, cache_dir, wants_mmproj=wants_mmproj
        )
        if mmproj is not None:
            options["mmproj_path"] = mmproj
        return cls(text, **options)

    @property
    def context_params(self) -> Any:
        """llama.cpp's parameters of the context."""
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        # llama_cpp.Llama's constructor goes on to fill these in and makes its context with them
        if self._hook is not None:
            set_fields(
                params,
                cb_eval=ctypes.cast(self._hook.cb_eval, llama_cpp.ggml_backend_sched_eval_callback),
                cb_eval_user_data=self._hook.user_data,
                abort_callback=ctypes.cast(self._hook.abort_callback, llama_cpp.ggml_abort_callback),
                abort_callback_data=self._hook.user_data,
            )
        self._context_params = params

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """A chat as tokens, for `create_completion`, `generate` or `eval`; images, the newest ones, are kept for these.

        Raises:
            PromptError: messages that make no prompt. ImageError: an image that cannot be read.
            BackendError: the model has no mmproj (`vocab_only`), or is closed.
        """
        if self._eyes is None or self._template is None:
            raise BackendError("this model has no mmproj: it is closed, or was loaded with vocab_only")
        prompt = build_prompt(
            messages,
            self._template,
            self._tokenizer,
            image_token_id=self._image_token,
            tools=tools,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
        )
        tokens = list(prompt.token_ids)
        images = load_images([slot.source for slot in prompt.images], limits=self._limits)
        for slot, image in zip(prompt.images, images, strict=True):
            tokens[slot.position] = self._images.add(image)
        self._images.trim({*_images_in(tokens), *_images_in(self._input_ids)})
        return tokens

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens, images among them.

        Raises:
            RuntimeError: llama.cpp failed. BackendError: an image could not be seen.
            KeyboardInterrupt: Ctrl-C arrived meanwhile. After any of these the context holds what it held before.
        """
        if self._eyes is None or len(tokens) == 0:
            super().eval(tokens)
            return
        for i in range(0, len(tokens), self.n_batch):
            held = self.n_tokens
            try:
                self._eval_batch(self._eyes, list(tokens[i : i + self.n_batch]))
            except BaseException:
                self.n_tokens, self._requires_eval = held, True
                raise

    def _eval_batch(self, eyes: Eyes, tokens: list[int]) -> None:
        seen, follows = self._last_group()
        groups = []
        for token in tokens:
            seen = next_group(seen, follows, token if token < 0 else None)
            follows = token < 0
            groups.append(seen)
        wanted = {image for group in groups for image in group}
        self._states = {image: self._encoded(eyes, image) for image in wanted}
        self._hook.set_n_threads(self.n_threads_batch if len(tokens) > 1 else self.n_threads)
        # llama.cpp takes tokens or embeddings, not both in a batch; a vocabulary without image token needs the latter
        no_token = self._image_token >= self._n_vocab
        for as_embd, run in groupby(zip(tokens, groups, strict=True), key=lambda row: no_token and row[0] < 0):
            ids, sees = zip(*run, strict=True)
            n_past = self.n_tokens
            distinct = [group for group in dict.fromkeys(sees) if group]
            index = {group: i for i, group in enumerate(distinct)}
            self._hook.begin(
                [index.get(group, -1) for group in sees],
                [[self._states[image] for image in group] for group in distinct],
            )
            decoded = False
            try:
                if as_embd:
                    self._eval_image_rows(eyes, len(ids))
                else:
                    super().eval([token if token >= 0 else self._image_token for token in ids])
                decoded = True
            finally:
                self._hook.end(decoded)
            self.input_ids[n_past : self.n_tokens] = ids

    def _last_group(self) -> tuple[tuple[int, ...], bool]:
        """The images that the last position sees, and whether it is one itself."""
        past = self._input_ids
        at = np.flatnonzero(past < 0)
        if not at.size:
            return (), False
        last = first = int(at[-1])
        while first and past[first - 1] < 0:
            first -= 1
        return tuple(past[first : last + 1].tolist()), last == len(past) - 1

    def _encoded(self, eyes: Eyes, image: int) -> Any:
        states = self._states.get(image)
        return eyes.cache.encode(self._images[image].image).states if states is None else states

    def _eval_image_rows(self, eyes: Eyes, n: int) -> None:
        """llama_cpp.Llama.eval for n image tokens that the vocabulary lacks."""
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        embd = eyes.image_token_embd
        with contextlib.closing(
            llama_cpp._internals.LlamaBatch(n_tokens=n, embd=embd.size, n_seq_max=1, verbose=False)
        ) as rows:
            batch = rows.batch
            batch.n_tokens = n
            for i in range(n):
                ctypes.memmove(ctypes.addressof(batch.embd.contents) + i * embd.nbytes, embd.ctypes.data, embd.nbytes)
                batch.pos[i] = self.n_tokens + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = self._logits_all or i == n - 1
            self._ctx.decode(rows)
        if self._logits_all:
            logits = np.ctypeslib.as_array(self._ctx.get_logits(), shape=(n, self._n_vocab))
            self.scores[self.n_tokens : self.n_tokens + n] = logits
        self.n_tokens += n
        self._requires_eval = False

    def embed(self, *args: Any, **options: Any) -> Any:
        """As llama_cpp.Llama's; Ctrl-C stops it."""
        if self._hook is None:
            return super().embed(*args, **options)
        self._hook.begin([], [])
        done = False
        try:
            result = super().embed(*args, **options)
            done = True
        finally:
            self._hook.end(done)
        return result

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """As llama_cpp.Llama's; an image gives the text of its token, which is special."""
        before = None if prev_tokens is None else self._without_images(prev_tokens)
        text: bytes = super().detokenize(self._without_images(tokens), prev_tokens=before, special=special)
        return text

    def _without_images(self, tokens: Sequence[int]) -> list[int]:
        token = self._image_token
        tokens = [t if t >= 0 else token for t in tokens]
        return [t for t in tokens if t < self._n_vocab] if token >= self._n_vocab else tokens

    def save_state(self) -> Any:
        """As llama_cpp.Llama's, with the pictures that the context holds."""
        state = super().save_state()
        state.pictures = {image: self._images[image] for image in _images_in(self._input_ids)}
        return state

    def load_state(self, state: Any) -> None:
        """As llama_cpp.Llama's; states of llama_cpp.Llama's are taken, too."""
        super().load_state(state)
        saved = self._input_ids.copy()
        for image, picture in getattr(state, "pictures", {}).items():
            # in another process the number may have come to stand for another picture
            self.input_ids[: self.n_tokens][saved == image] = self._images.add_picture(picture)

    def close(self) -> None:
        """Free everything. Idempotent."""
        if tokenizer := getattr(self, "_tokenizer", None):
            tokenizer.close()
        super().close()
        self._hook = self._eyes = None  # after the context that calls the hook
        self._states = {}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        ours = isinstance(self.chat_handler, ChatHandler)
        return {**state, **self._image_options, **({"chat_handler": None} if ours else {})}


def _images_in(tokens: npt.ArrayLike) -> set[int]:
    ids = np.asarray(tokens)
    return set(ids[ids < 0].tolist())
