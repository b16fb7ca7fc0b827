"""From what a user calls a model to a loaded LLM: `pyvllama.load`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyvllama._runtime import default_n_threads
from pyvllama.context import MAX_N_THREADS, ContextParams
from pyvllama.draft import Draft
from pyvllama.draft_model import DraftModel
from pyvllama.errors import ConfigError, ModelNotFound
from pyvllama.image_store import ImageStore
from pyvllama.llm import LLM, Progress
from pyvllama.locate import as_path
from pyvllama.model import Model
from pyvllama.prompt_lookup import PromptLookup
from pyvllama.resolve import resolve
from pyvllama.vision_cache import VisionCache

__all__ = ["DEFAULT_N_CTX", "DEFAULT_N_DRAFT", "LOOKUP", "MAX_N_DRAFT", "load", "load_as"]

T = TypeVar("T")

DEFAULT_N_CTX = 4096
DEFAULT_N_DRAFT = 3  # llama.cpp's
MAX_N_DRAFT = 256
LOOKUP = "lookup"
"""The draft that needs no second model."""

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
    mmproj_offload: bool = True,
    kv_type: str = "f16",
    cross_kv_type: str = "f16",
    flash_attn: bool | None = None,
    use_mmap: bool = True,
    repack: bool = True,
    image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
    image_cache_dir: str | Path | None = None,
    image_cache_disk_bytes: int = DEFAULT_IMAGE_CACHE_DISK_BYTES,
    draft: str | Path | Draft | None = None,
    n_draft: int | None = None,
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
        n_gpu_layers: text layers on the GPU, the last ones and the output, which counts as one; -1 for all. Each
            cross-attention layer is where the text layer before it is.
        mmproj_offload: whether, with n_gpu_layers other than 0, the vision tower is on the GPU, too.
        kv_type: type of the self-attention cache: f32, f16, bf16, q8_0.
        cross_kv_type: type of the images' keys and values: f16, bf16, f32, or q8_0 (the values then f16 on the CPU).
        flash_attn: flash attention in the text model; None lets llama.cpp choose.
        use_mmap: map the text file instead of reading it.
        repack: let the CPU keep matmul weights in its kernels' own layout, a copy in memory that takes time to make.
            Without, they stay in the mapped files, where the system can take back their memory: less time to load, and
            to compute prompts on some CPUs, more for each token of the answer; README has figures.
        image_cache_bytes: memory for encoded images that may come again.
        image_cache_dir: also keep encoded images in files there, for other processes and later ones; made if missing.
            What they hold tells what was in the pictures: only the owner can read them. None: in memory only.
        image_cache_disk_bytes: size of these files together.
        draft: who guesses tokens of `LLM.chat`'s answers, so that several are computed at once (speculative decoding):
            "lookup" takes them from the prompt and the answer itself; a path is a small text GGUF of the same
            vocabulary (Llama 3.2 1B for Llama 3.2 Vision), whose text layers go where n_gpu_layers says; or a Draft of
            your own, closed with the model. Answers are the same, up to the rounding of larger batches; see
            `timings` for how many guesses were right.
        n_draft: tokens that are guessed at a time, at most; None: DEFAULT_N_DRAFT.
        progress: called with the fraction loaded, 0 to 1, and before that with that of a conversion or an import, if
            there is one; returning False stops with Cancelled.

    Raises:
        ModelNotFound: there is no such model, or no mmproj beside it, or it cannot be had.
        CheckpointError: a checkpoint that cannot be converted.
        FormatError: a file is damaged, of another kind, or the two do not fit.
        ConfigError: an option out of range.
        BackendError: too little memory, or llama.cpp failed otherwise.
    """
    given = locals()
    del given["draft"], given["n_draft"]
    if n_draft is not None and not 1 <= n_draft <= MAX_N_DRAFT:
        raise ConfigError(f"n_draft must be between 1 and {MAX_N_DRAFT}, not {n_draft}")
    if n_draft is not None and (draft is None or isinstance(draft, Draft)):
        raise ConfigError("n_draft needs draft: 'lookup' or the path of a small text GGUF")

    path = None if draft is None or draft == LOOKUP or isinstance(draft, Draft) else _draft_path(draft)
    n_max = n_draft or DEFAULT_N_DRAFT

    def make(model: Model, params: ContextParams, images: VisionCache) -> LLM:
        guesser = draft if isinstance(draft, Draft) else PromptLookup(n_max) if draft == LOOKUP else None
        if path is not None:
            guesser = DraftModel(
                path, model, params, n_max, n_gpu_layers=n_gpu_layers, use_mmap=use_mmap, repack=repack
            )
        return LLM(model, params, images, guesser)

    return _load(make, **given)


def load_as(
    make: Callable[[Model, ContextParams, VisionCache], T],
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    **options: Any,
) -> T:
    """As `load`, into something else than an LLM.

    Args:
        make: from the loaded model, the sizes of a context, and the cache of its images; owns the model from then on.
        model, mmproj, options: as of `load`, without draft and n_draft.
    """
    given = inspect.signature(load).bind(model, mmproj, **options)
    if unknown := {"draft", "n_draft"} & set(given.arguments):
        raise TypeError(f"{', '.join(sorted(unknown))}: only `load` takes a draft")
    given.apply_defaults()
    del given.arguments["draft"], given.arguments["n_draft"]
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
    mmproj_offload: bool,
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
        mmproj_offload=mmproj_offload,
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


def _draft_path(draft: str | Path) -> Path:
    path = as_path(draft)
    if not path.is_file():
        raise ModelNotFound(f"{path}: there is no such draft model; name a text GGUF, or 'lookup' to do without one")
    return path
