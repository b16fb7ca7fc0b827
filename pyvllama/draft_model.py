"""A draft by a second, small text model of the same vocabulary: Llama 3.2 1B for Llama 3.2 Vision 11B."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyvllama._runtime import llama_cpp, native, set_fields
from pyvllama.context import ContextParams
from pyvllama.draft import Draft
from pyvllama.errors import BackendError, FormatError
from pyvllama.gguf_file import GGUFFile
from pyvllama.model import Model, TextWeights, load_text
from pyvllama.pair_checks import check_text

__all__ = ["DraftModel"]

_N_BATCH = 512
_NORMAL_TOKEN = 1  # of tokenizer.ggml.token_type
_MAX_DIFFERENCE = 256  # in tokens: what the image token, padding and fine-tunes add


class DraftModel(Draft):
    """The likeliest tokens by a small model, which sees the text only: the places of pictures are left out for it.

    It keeps its own KV cache: of a text that has grown, only what is new is decoded.

    Args:
        path: a text GGUF of llama.cpp's architecture `llama`.
        model: the one that it drafts for.
        params: of that one's context; n_ctx, threads and n_ubatch are taken over.
        n_max: see Draft.
        n_gpu_layers: as for Model.
        use_mmap: map the file instead of reading it.
        repack: as for Model.

    Raises:
        FormatError: the file is damaged, of another kind, or its vocabulary is another one.
        BackendError: too little memory.
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        params: ContextParams,
        n_max: int,
        *,
        n_gpu_layers: int = 0,
        use_mmap: bool = True,
        repack: bool = True,
    ) -> None:
        super().__init__(n_max)
        self._ctx: Any = None
        self._weights: TextWeights | None = None
        self._hook: Any = None
        file = GGUFFile(path)
        check_text(file)
        _check_vocabulary(file, model)
        self._n_tokens = len(file.metadata["tokenizer.ggml.tokens"])
        self._n_vocab = min(self._n_tokens, model.n_vocab)
        self._image_token = model.image_token
        self._held: list[int] = []  # what the KV cache holds, at least
        self._weights = TextWeights(load_text(file, n_gpu_layers=n_gpu_layers, use_mmap=use_mmap, repack=repack))
        # Only for its abort callback: it knows of Ctrl-C and of `interrupt`.
        self._hook = native.DecodeHook(model.mmproj)
        c = llama_cpp.llama_context_default_params()
        n_batch = min(_N_BATCH, params.n_ctx)
        set_fields(
            c,
            n_ctx=params.n_ctx,
            n_seq_max=1,
            n_batch=n_batch,
            n_ubatch=min(params.n_ubatch, n_batch),
            n_threads=params.n_threads,
            n_threads_batch=params.n_threads_batch,
            abort_callback=ctypes.cast(self._hook.abort_callback, llama_cpp.ggml_abort_callback),
            abort_callback_data=self._hook.user_data,
        )
        self._params = c
        self._ctx = llama_cpp.llama_init_from_model(self._weights.handle, c)
        if not self._ctx:
            self.close()
            raise BackendError(
                f"llama.cpp could not create a context of {params.n_ctx} positions for the draft model {path}: there "
                "may be too little memory; try a smaller n_ctx, or no draft"
            )
        self._n_batch: int = llama_cpp.llama_n_batch(self._ctx)
        self._n_ctx: int = llama_cpp.llama_n_ctx(self._ctx)

    def propose(self, tokens: Sequence[int], n: int) -> list[int]:
        """See Draft. Greedy: the token that the draft finds likeliest has the best chance with any sampler."""
        if self._ctx is None:
            raise BackendError("the draft model is closed")
        text = [token for token in tokens if token < self._n_tokens and token != self._image_token]
        n = min(n, self._n_ctx - len(text) + 1)
        if n < 1 or not text:
            return []
        same = self._common_prefix(text)
        # Always: an interrupt between decoding and noting it down leaves rows that `_held` does not know of.
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._ctx), 0, same, -1)
        del self._held[same:]
        self._decode(text[same:])
        found = [self._likeliest()]
        while len(found) < n:
            self._decode(found[-1:])
            found.append(self._likeliest())
        return found

    def _common_prefix(self, text: list[int]) -> int:
        """How much of a text is there already; never all of it: the last token is decoded anew, for its logits."""
        low, high = 0, min(len(self._held), len(text) - 1)
        if self._held[:high] == text[:high]:
            return high
        while high - low > 1:  # equal up to low, different somewhere before high
            middle = (low + high) // 2
            if self._held[low:middle] == text[low:middle]:
                low = middle
            else:
                high = middle
        return low

    def _decode(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), self._n_batch):
            part = tokens[start : start + self._n_batch]
            array = (llama_cpp.llama_token * len(part))(*part)
            self._hook.begin([-1] * len(part), [])
            status = None
            try:
                status = llama_cpp.llama_decode(self._ctx, llama_cpp.llama_batch_get_one(array, len(part)))
            finally:
                self._hook.end(status == 0)
            if status != 0:
                raise BackendError(f"llama_decode failed with status {status} in the draft model")
            self._held.extend(part)

    def _likeliest(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._n_vocab,)).argmax())

    def interrupt(self, on: bool) -> None:
        """See Draft."""
        hook = self._hook  # which `close` may take away meanwhile
        if hook is not None:
            hook.interrupt(on)

    def close(self) -> None:
        """See Draft."""
        ctx, self._ctx = getattr(self, "_ctx", None), None
        if ctx is not None:
            llama_cpp.llama_free(ctx)
        self._hook = None  # after the context that calls it
        weights, self._weights = getattr(self, "_weights", None), None
        if weights is not None:
            weights.release()

    def __del__(self) -> None:
        self.close()


def _check_vocabulary(file: GGUFFile, model: Model) -> None:
    """Refuse a draft whose tokens mean something else.

    Only ordinary tokens must be equal: fine-tunes give reserved ones other names. (A wrong guess costs time, no more.)
    """
    ours, theirs = (metadata["tokenizer.ggml.tokens"] for metadata in (model.text_metadata, file.metadata))
    head = f"{file.path} cannot draft for {model.text_path}"
    advice = "take a model of the same family, such as Llama 3.2 1B for Llama 3.2 Vision"
    if abs(len(ours) - len(theirs)) > _MAX_DIFFERENCE:
        raise FormatError(
            f"{head}: its vocabulary has {len(theirs)} tokens, the model's {len(ours)}, and they may differ by "
            f"{_MAX_DIFFERENCE} at most: {advice}"
        )
    types = [_token_types(metadata, len(ours)) for metadata in (model.text_metadata, file.metadata)]
    for i, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their and all(t[i : i + 1] == [_NORMAL_TOKEN] for t in types):
            raise FormatError(f"{head}: its token {i} is {their!r}, the model's is {our!r}: {advice}")


def _token_types(metadata: Mapping[str, Any], n: int) -> list[Any]:
    found = metadata.get("tokenizer.ggml.token_type")
    return found if isinstance(found, list) else [_NORMAL_TOKEN] * n
