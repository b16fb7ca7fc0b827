"""A llama.cpp context with the cross-attention hook in it: rows in, logits out. Knows no text and no chat."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama._runtime import attach_threadpool, llama_cpp, native, set_fields
from pyvllama.errors import BackendError, ConfigError, ContextOverflow
from pyvllama.model import Model

__all__ = ["Context", "ContextParams", "Row"]

_NO_SLOT = 1
MAX_N_THREADS = 512  # ggml's own limit
_LIMITS = {  # llama.cpp's own
    "n_ctx": 2**31 - 1,
    "n_batch": 2**31 - 1,
    "n_ubatch": 2**31 - 1,
    "n_seq_max": 256,
    "n_threads": MAX_N_THREADS,
    "n_threads_batch": MAX_N_THREADS,
}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # ggml_type
_FLASH_ATTN = {None: -1, False: 0, True: 1}  # llama_flash_attn_type


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Sizes of a context.

    Attributes:
        n_ctx: positions of all sequences together.
        n_batch: rows a decode call takes.
        n_ubatch: rows computed at once.
        n_seq_max: sequences.
        n_threads: CPU threads for single rows and, with n_threads_batch, for many.
        kv_type: type of the self-attention cache: f32, f16, bf16 or q8_0.
        flash_attn: for self-attention; None lets llama.cpp choose.
    """

    n_ctx: int = 4096
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_threads: int = 1
    n_threads_batch: int = 1
    kv_type: str = "f16"
    flash_attn: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One position of one sequence, to be decoded.

    Attributes:
        token: its id.
        pos: its position in the sequence.
        images: ImageStates it sees, oldest first; empty: it passes cross-attention layers unchanged.
        seq: its sequence.
        logits: whether its logits are wanted.
    """

    token: int
    pos: int
    images: tuple[Any, ...] = ()
    seq: int = 0
    logits: bool = False


class Context:
    """A llama_context and its hook. Not thread-safe. `close` is idempotent.

    Raises:
        ConfigError: an option out of range.
        BackendError: llama.cpp cannot create the context (memory).
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        if params.kv_type not in KV_TYPES:
            raise ConfigError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {params.kv_type!r}")
        for name, most in _LIMITS.items():
            value = getattr(params, name)
            if type(value) is not int:
                raise ConfigError(f"{name} must be a whole number, not {value!r}")
            if not 1 <= value <= most:
                raise ConfigError(f"{name} must be between 1 and {most}, not {value}")
        if not any(params.flash_attn is choice for choice in _FLASH_ATTN):
            raise ConfigError(f"flash_attn must be True, False or None, not {params.flash_attn!r}")
        if params.kv_type == "q8_0" and params.flash_attn is False:
            raise ConfigError("kv_type q8_0 needs flash attention: leave flash_attn to llama.cpp, or choose f16")
        self._ctx: Any = None
        self.model = model
        self.kv_type = params.kv_type
        self._weights: Any = model.weights.acquire()
        self._hook: Any = native.DecodeHook(model.mmproj, n_threads=max(params.n_threads, params.n_threads_batch))
        c = llama_cpp.llama_context_default_params()
        n_batch = min(params.n_batch, params.n_ctx)
        set_fields(
            c,
            n_ctx=params.n_ctx,
            n_seq_max=params.n_seq_max,
            n_batch=n_batch,
            n_ubatch=min(params.n_ubatch, n_batch),
            n_threads=params.n_threads,
            n_threads_batch=params.n_threads_batch,
            type_k=KV_TYPES[params.kv_type],
            type_v=KV_TYPES[params.kv_type],
            flash_attn_type=_FLASH_ATTN[params.flash_attn],
            # One KV stream: with several, llama.cpp reorders rows between ubatches and the hook would mistake them.
            kv_unified=True,
            cb_eval=ctypes.cast(self._hook.cb_eval, llama_cpp.ggml_backend_sched_eval_callback),
            cb_eval_user_data=self._hook.user_data,
            abort_callback=ctypes.cast(self._hook.abort_callback, llama_cpp.ggml_abort_callback),
            abort_callback_data=self._hook.user_data,
        )
        self._params = c  # holds the callbacks
        self._ctx = llama_cpp.llama_init_from_model(model.handle, c)
        if not self._ctx:
            raise BackendError(
                f"llama.cpp could not create a context of {params.n_ctx} positions: there may be too little memory; "
                "try a smaller n_ctx"
            )
        attach_threadpool(self._ctx, self._hook.threadpool)
        self.n_ctx: int = llama_cpp.llama_n_ctx(self._ctx)
        self.n_seq_max = params.n_seq_max
        self.n_batch: int = llama_cpp.llama_n_batch(self._ctx)
        self._n_threads = (params.n_threads, params.n_threads_batch)
        self._token_batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self._embd_batch: Any = None  # for image rows of a vocabulary without image token

    @property
    def handle(self) -> Any:
        """The llama_context pointer, for llama_cpp's sampler functions."""
        if self._ctx is None:
            raise BackendError("the context is closed")
        return self._ctx

    @property
    def hook_stats(self) -> dict[str, Any]:
        """Counters of the cross-attention hook."""
        if self._hook is None:
            raise BackendError("the context is closed")
        stats: dict[str, Any] = self._hook.stats
        return stats

    def set_collector(self, collector: native.ImportanceCollector | None) -> None:
        """Count the inputs of all matrices of rows decoded from now on; None: no more."""
        self.handle  # noqa: B018  raises when closed
        self._hook.set_collector(collector)

    def decode(self, rows: Sequence[Row], *, collect: bool = False) -> npt.NDArray[np.float32]:
        """Compute rows, in order, at most n_batch of them.

        Args:
            rows: consecutive positions of each sequence, sequences mixed as they come.
            collect: whether to return logits. A sampler reads those of the last row from the context itself.

        Returns:
            float32 [number of rows with `logits`, n_tokens of the vocabulary] if collect, else [0, n_tokens].

        Raises:
            ContextOverflow: no room in the KV cache.
            BackendError: the computation failed.
            KeyboardInterrupt: Ctrl-C arrived meanwhile.
            After any of these the cache holds what it held before.
            ValueError: a row with a sequence, position or token that does not exist, or too many rows.
        """
        if not 0 < len(rows) <= self.n_batch:
            raise ValueError(f"{len(rows)} rows, a batch takes 1 to {self.n_batch}")
        n_tokens = self.model.tokenizer.n_tokens
        for row in rows:
            if not (0 <= row.seq < self.n_seq_max and row.pos >= 0):
                raise ValueError(f"{row}: there are {self.n_seq_max} sequences, and positions count from 0")
            if not (0 <= row.token < n_tokens or row.token == self.model.image_token):
                raise ValueError(f"{row}: there are {n_tokens} tokens")
        memory = llama_cpp.llama_get_memory(self.handle)
        held = {row.seq: llama_cpp.llama_memory_seq_pos_max(memory, row.seq) for row in rows}
        parts = [np.empty((0, n_tokens), np.float32)]
        try:
            # llama.cpp takes token ids or embeddings, not both in a batch
            for as_embd, part in groupby(rows, key=lambda row: row.token >= n_tokens):
                run = list(part)
                self._decode(run, as_embd)
                if collect:
                    parts.append(self._logits(sum(row.logits for row in run)))
            return np.concatenate(parts)
        except BaseException:
            for seq, last in held.items():
                self.remove(seq, last + 1)
            raise

    def _decode(self, rows: list[Row], as_embd: bool) -> None:
        handle = self.handle
        batch = self._embedding_batch() if as_embd else self._token_batch
        embd = self.model.image_token_embd
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            if as_embd:
                ctypes.memmove(ctypes.addressof(batch.embd.contents) + i * embd.nbytes, embd.ctypes.data, embd.nbytes)
            else:
                batch.token[i] = row.token
            batch.pos[i] = row.pos
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.seq
            batch.logits[i] = row.logits
        groups: dict[tuple[int, ...], int] = {}
        images: list[tuple[Any, ...]] = []
        for row in rows:
            key = tuple(map(id, row.images))
            if row.images and key not in groups:
                groups[key] = len(images)
                images.append(row.images)
        row_group = [groups[tuple(map(id, row.images))] if row.images else -1 for row in rows]
        self._hook.set_n_threads(self._n_threads[len(rows) > 1])
        self._hook.begin(row_group, [list(g) for g in images])
        status = None
        try:
            status = llama_cpp.llama_decode(handle, batch)
        finally:
            self._hook.end(status == 0)
        if status == _NO_SLOT:
            raise ContextOverflow(f"the context of {self.n_ctx} positions has no room for {len(rows)} more")
        if status != 0:
            raise BackendError(f"llama_decode failed with status {status}")

    def interrupt(self, on: bool) -> None:
        """From another thread: while it is on, a running decode ends with Cancelled (on the CPU, and soon)."""
        hook = self._hook  # which `close` may take away meanwhile
        if hook is not None:
            hook.interrupt(on)

    def row_logits(self, row: int) -> npt.NDArray[np.float32]:
        """Logits of a row of the last batch that wanted them, float32 [n_tokens]; -1: the last one. Gone with the next.

        Raises:
            BackendError: that row has none.
        """
        pointer = llama_cpp.llama_get_logits_ith(self.handle, row)
        if not pointer:
            raise BackendError(f"row {row} of the last batch has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.model.tokenizer.n_tokens,))

    def _embedding_batch(self) -> Any:
        if self._embd_batch is None:
            self._embd_batch = llama_cpp.llama_batch_init(self.n_batch, self.model.n_embd, 1)
        return self._embd_batch

    def _logits(self, n_rows: int) -> npt.NDArray[np.float32]:
        shape = (n_rows, self.model.tokenizer.n_tokens)
        if n_rows == 0:
            return np.empty(shape, np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), shape=shape).copy()

    def remove(self, seq: int, first: int) -> None:
        """Drop a sequence's positions from `first` on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.handle), seq, first, -1)

    def copy(self, source: int, target: int, n: int) -> None:
        """Let a sequence have the first n positions of another; they share their memory."""
        llama_cpp.llama_memory_seq_cp(llama_cpp.llama_get_memory(self.handle), source, target, 0, n)

    def kv_state(self, seq: int) -> npt.NDArray[np.uint8]:
        """What the KV cache holds of a sequence, in llama.cpp's own form: uint8 [n_bytes].

        Raises:
            BackendError: llama.cpp cannot read it.
        """
        state = np.empty(llama_cpp.llama_state_seq_get_size(self.handle, seq), np.uint8)
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not state.size or llama_cpp.llama_state_seq_get_data(self.handle, data, state.size, seq) != state.size:
            raise BackendError("llama.cpp could not read its KV cache")
        return state

    def set_kv_state(self, seq: int, state: npt.NDArray[np.uint8]) -> bool:
        """Put what `kv_state` gave in place of a sequence; it must have passed `check_kv_state`.

        Returns:
            Whether llama.cpp took it; if not, the sequence is empty.
        """
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if llama_cpp.llama_state_seq_set_data(self.handle, data, state.size, seq) == state.size:
            return True
        self.remove(seq, 0)
        return False

    def close(self) -> None:
        """Free the context."""
        ctx, self._ctx = getattr(self, "_ctx", None), None
        if ctx is not None:
            llama_cpp.llama_batch_free(self._token_batch)
            if self._embd_batch is not None:
                llama_cpp.llama_batch_free(self._embd_batch)
            llama_cpp.llama_free(ctx)
        self._hook = None  # after the context that calls it
        weights, self._weights = getattr(self, "_weights", None), None
        if weights is not None:
            weights.release()

    def __del__(self) -> None:
        self.close()
