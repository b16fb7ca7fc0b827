"""A decoder made of llama_cpp's low-level calls and the extension's hook alone: no session, no sampling, no prompt.

The parity tests use it so that they depend on the two parts that compute, and on nothing above them.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, Image, images_seen

from pyvllama._runtime import llama_cpp, native, set_fields

N_THREADS = 1  # tiny matrices; with more, threads wait for one another, for long where cores are taken


@dataclass(frozen=True)
class Row:
    """One row of a batch. group: index into the groups given to decode, -1 = sees no image."""

    token: int
    position: int
    sequence: int = 0
    group: int = -1


class Decoder:
    """A llama.cpp context over a text GGUF, with the cross-attention hook (mmproj given) or without (stock).

    Args:
        text: the text GGUF.
        mmproj: the opened mmproj, or None.
        n_ubatch: rows that llama.cpp computes at once.
        kv_type: ggml type number of the self-attention cache; 0 = F32, 1 = F16.
        flash: llama.cpp's flash attention for the self-attention; off for exactness.
        n_gpu_layers, tensor_split: llama.cpp's; where it knows a device that is no CPU.
        repack: llama.cpp's use_extra_bufts: matrices copied into the layout of its CPU kernels.
        cb_eval: without mmproj, a callback of the test's own (llama_cpp.ggml_backend_sched_eval_callback).
    """

    def __init__(
        self,
        text: Path,
        mmproj: Any = None,
        *,
        n_ctx: int = 256,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        kv_type: int = 0,
        flash: bool = False,
        n_threads: int = N_THREADS,
        n_gpu_layers: int = 0,
        tensor_split: Sequence[float] = (),
        repack: bool = True,
        cb_eval: Any = None,
    ) -> None:
        llama_cpp.llama_backend_init()
        self.mmproj = mmproj
        self.hook = native.DecodeHook(mmproj, n_threads=n_threads) if mmproj is not None else None
        model_params = llama_cpp.llama_model_default_params()
        set_fields(model_params, n_gpu_layers=n_gpu_layers, use_extra_bufts=repack)
        if tensor_split:
            split = [*tensor_split, *[0.0] * (llama_cpp.llama_max_devices() - len(tensor_split))]
            set_fields(model_params, tensor_split=(ctypes.c_float * len(split))(*split))
        self.model = llama_cpp.llama_model_load_from_file(str(text).encode(), model_params)
        assert self.model, f"llama.cpp does not load {text}"
        params = llama_cpp.llama_context_default_params()
        set_fields(
            params,
            n_ctx=n_ctx,
            n_batch=n_ctx,
            n_ubatch=n_ubatch,
            n_seq_max=n_seq_max,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            kv_unified=True,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn_type=1 if flash else 0,
        )
        if self.hook is not None:
            callback = ctypes.cast(self.hook.cb_eval, llama_cpp.ggml_backend_sched_eval_callback)
            set_fields(params, cb_eval=callback, cb_eval_user_data=self.hook.user_data)
        elif cb_eval is not None:
            set_fields(params, cb_eval=cb_eval)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp makes no context"
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def encode(self, image: Image) -> Any:
        return self.mmproj.encode(*image)[0]

    def decode(self, rows: Sequence[Row], groups: Sequence[Sequence[Any]] = ()) -> np.ndarray:
        """One llama_decode. groups: images (from encode) of each group. Returns logits [n_rows, n_vocab]."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i] = row.token, row.position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, row.sequence, 1
        if self.hook is not None:
            self.hook.begin([row.group for row in rows], [list(group) for group in groups])
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if self.hook is not None:
            self.hook.end(status == 0)
        assert status == 0, status
        logits = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, shape=(len(rows), self.n_vocab)).copy()

    def logits(self, case: Case, pieces: Sequence[int] | None = None, *, images: Sequence[Any] = ()) -> np.ndarray:
        """Logits of all rows of a prompt, [n_tokens, n_vocab].

        Args:
            case: the prompt.
            pieces: rows of each llama_decode, in order; None = all at once. The last one repeats to the end.
            images: the case's images as encode gave them; encoded here if not given.
        """
        self.clear()
        if self.hook is not None:
            images = images or [self.encode(image) for image in case.images]
        rows, groups = plan(case, images if self.hook is not None else ())
        out, start, left = [], 0, list(pieces or [len(rows)])
        while start < len(rows):
            n = left.pop(0) if len(left) > 1 else left[0]
            out.append(self.decode(rows[start : start + n], groups))
            start += n
        return np.concatenate(out)


def plan(
    case: Case, images: Sequence[Any], sequence: int = 0, first_group: int = 0
) -> tuple[list[Row], list[list[Any]]]:
    """Rows of a prompt and the groups of images they name; without images no row sees any."""
    groups: list[list[int]] = []
    rows = []
    seen_by = images_seen(case.token_ids, case.image_token) if images else [[]] * case.n_tokens
    for position, (token, seen) in enumerate(zip(case.token_ids, seen_by, strict=True)):
        if seen and (not groups or groups[-1] != seen):
            groups.append(seen)
        rows.append(Row(token, position, sequence, first_group + len(groups) - 1 if seen else -1))
    return rows, [[images[k] for k in group] for group in groups]
