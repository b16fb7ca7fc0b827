"""From what a user calls a model to a loaded LLM: `pyvllama.load`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyvllama._runtime import default_n_threads
from pyvllama.context import MAX_N_THREADS, ContextParams
from pyvllama.errors import ConfigError
from pyvllama.image_store import ImageStore
from pyvllama.llm import LLM, Progress
from pyvllama.model import Model
from pyvllama.resolve import resolve
from pyvllama.vision_cache import VisionCache

__all__ = ["DEFAULT_N_CTX", "load", "load_as"]

T = TypeVar("T")

DEFAULT_N_CTX = 4096
DEFAULT_IMAGE_CACHE_BYTES = 512 << 20
DEFAULT_IMAGE_CACHE_DISK_BYTES = 4 << 30


def load(
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    *,
    text_type: str | None = None,
    n_ctx: int = DEFAULT_N_CTX,
    n_batch: int = 512,
    n_ubatch: int = 512,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    kv_type: str = "f16",
    cross_kv_type: str = "f16",
    flash_attn: bool | None = None,
    use_mmap: bool = True,
    repack: bool = True,
    image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
    image_cache_dir: str | Path | None = None,
    image_cache_disk_bytes: int = DEFAULT_IMAGE_CACHE_DISK_BYTES,
    progress: Progress | None = None,
) -> LLM:
    """Load a model.

    Args:
        model: a text GGUF, or a directory that holds a pair; a checkpoint's directory (converted once, into pyvllama's
            cache); `user/repo[:QUANT]` on the Hub (fetched; a checkpoint is converted once); `ollama:NAME[:TAG]`
            (imported once); or None: the bundled pocket model. See `resolve`.
        mmproj: the mmproj file; None: the one that belongs to the text file.
        text_type: type that a checkpoint is converted to; None: q4_k_m.
        n_ctx: positions of the context; more memory, longer conversations.
        n_batch: prompt tokens a decode call takes.
        n_ubatch: prompt tokens computed at once.
        n_threads: CPU threads; None: one a physical core.
        n_gpu_layers: text layers on the GPU, -1 for all; any but 0 also puts the mmproj there.
        kv_type: type of the self-attention cache: f32, f16, bf16, q8_0.
        cross_kv_type: type of the images' keys and values: f16, bf16, f32, or q8_0 (the values then f16 on the CPU).
        flash_attn: flash attention in the text model; None lets llama.cpp choose.
        use_mmap: map the text file instead of reading it.
        repack: let the CPU keep the mmproj's matmul weights in its fastest layout, a copy in memory.
        image_cache_bytes: memory for encoded images that may come again.
        image_cache_dir: also keep encoded images in files there, for other processes and later ones; made if missing.
            What they hold tells what was in the pictures: only the owner can read them. None: in memory only.
        image_cache_disk_bytes: size of these files together.
        progress: called with the fraction loaded, 0 to 1, and before that with that of a conversion or an import, if
            there is one; returning False stops with Cancelled.

    Raises:
        ModelNotFound: there is no such model, or no mmproj beside it, or it cannot be had.
        CheckpointError: a checkpoint that cannot be converted.
        FormatError: a file is damaged, of another kind, or the two do not fit.
        ConfigError: an option out of range.
        BackendError: too little memory, or llama.cpp failed otherwise.
    """
    return _load(LLM, **locals())


def load_as(
    make: Callable[[Model, ContextParams, VisionCache], T],
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    **options: Any,
) -> T:
    """As `load`, into something else than an LLM.

    Args:
        make: from the loaded model, the sizes of a context, and the cache of its images; owns the model from then on.
        model, mmproj, options: as of `load`.
    """
    given = inspect.signature(load).bind(model, mmproj, **options)
    given.apply_defaults()
    return _load(make, **given.arguments)


def _load(
    make: Callable[[Model, ContextParams, VisionCache], T],
    model: str | Path | None,
    mmproj: str | Path | None,
    text_type: str | None,
    n_ctx: int,
    n_batch: int,
    n_ubatch: int,
    n_threads: int | None,
    n_gpu_layers: int,
    kv_type: str,
    cross_kv_type: str,
    flash_attn: bool | None,
    use_mmap: bool,
    repack: bool,
    image_cache_bytes: int,
    image_cache_dir: str | Path | None,
    image_cache_disk_bytes: int,
    progress: Progress | None,
) -> T:
    if n_threads is not None and not 1 <= n_threads <= MAX_N_THREADS:
        raise ConfigError(f"n_threads must be between 1 and {MAX_N_THREADS}, not {n_threads}")
    counted = None if progress is None else (lambda done, total, _: progress(done / max(total, 1)))
    pair = resolve(model, mmproj, text_type=text_type, progress=counted)
    loaded = Model(
        pair.text,
        pair.mmproj,
        n_gpu_layers=n_gpu_layers,
        n_threads=n_threads,
        cross_kv_type=cross_kv_type,
        use_mmap=use_mmap,
        repack=repack,
        progress=progress,
    )
    threads = n_threads or default_n_threads()
    params = ContextParams(
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_threads=threads,
        n_threads_batch=threads,
        kv_type=kv_type,
        flash_attn=flash_attn,
    )
    try:
        store = None if image_cache_dir is None else ImageStore(loaded, image_cache_dir, image_cache_disk_bytes)
        return make(loaded, params, VisionCache(loaded, image_cache_bytes, store))
    except BaseException:
        loaded.close()
        raise
