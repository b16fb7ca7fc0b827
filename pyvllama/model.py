"""The two files of a pair, checked against each other and loaded: immutable, shared by any number of contexts."""

import ctypes
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama._runtime import default_n_threads, init_backend, llama_cpp, native, set_fields
from pyvllama.config import PreprocessorConfig
from pyvllama.errors import BackendError, Cancelled, ConfigError
from pyvllama.fingerprint import weights_fingerprint
from pyvllama.gguf_file import GGUFFile, pairing_hash
from pyvllama.pair_checks import check_pair, check_text
from pyvllama.pair_template import pair_template
from pyvllama.placement import Placement, place
from pyvllama.tokenizer import Tokenizer
from pyvllama.types import SamplingParams

__all__ = ["Model", "TextWeights", "load_text"]

Progress = Callable[[float], bool | None]

CROSS_KV_TYPES = ("f16", "bf16", "f32", "q8_0")
_SAMPLING_KEYS = {  # our option: llama.cpp's key
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
}


class Model:
    """A text GGUF and its mmproj, loaded.

    Args:
        text: the text GGUF, of llama.cpp's architecture `llama`.
        mmproj: vision tower, projector and cross-attention layers.
        n_gpu_layers: text layers on the GPU, the last ones and the output, which counts as one; -1 for all. Each
            cross-attention layer is where the text layer before it is.
        mmproj_offload: whether, with n_gpu_layers other than 0, the vision tower is on the GPU, too.
        n_threads: for loading and for encoding images; None: one a physical core.
        cross_kv_type: type of the images' keys and values: f16, bf16, f32 or q8_0.
        use_mmap: map the text file instead of reading it.
        repack: let the CPU keep matmul weights in its kernels' own layout, a copy in memory; without, they stay in the
            mapped files.
        progress: called with the fraction done, 0 to 1; returning False stops.

    Attributes:
        placement: on which devices what is.
        is_graft: the mmproj was made with another text model of the same shapes (allowed on purpose: the text weights
            of Llama 3.2 Vision are those of Llama 3.1).

    Raises:
        FormatError: a file is damaged, of another kind, or the two do not fit.
        ConfigError: a cross_kv_type that there is not, or not for heads of this size; PYVLLAMA_CPU_KERNELS names
            kernels that this CPU cannot run.
        BackendError: llama.cpp cannot load the file (memory).
        Cancelled: progress returned False.
    """

    def __init__(
        self,
        text: Path,
        mmproj: Path,
        *,
        n_gpu_layers: int = 0,
        mmproj_offload: bool = True,
        n_threads: int | None = None,
        cross_kv_type: str = "f16",
        use_mmap: bool = True,
        repack: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._weights: TextWeights | None = None
        self._mmproj: native.Mmproj | None = None
        if cross_kv_type not in CROSS_KV_TYPES:
            raise ConfigError(f"cross_kv_type must be one of {', '.join(CROSS_KV_TYPES)}, not {cross_kv_type!r}")
        self.text_path, self.mmproj_path = text, mmproj
        self.cross_kv_type, self.repack = cross_kv_type, repack
        self.n_threads = n_threads or default_n_threads()
        init_backend()
        text_file, mmproj_file = GGUFFile(text), GGUFFile(mmproj)
        check_text(text_file)
        self._files = text_file, mmproj_file  # mapped: what was loaded, whatever becomes of the names
        self.text_metadata = text_file.metadata
        self.mmproj_metadata = mmproj_file.metadata
        self.placement = place(
            text_file.metadata.get("llama.block_count"),
            n_gpu_layers,
            mmproj_offload=mmproj_offload,
            n_tower_bytes=sum(t.n_bytes for name, t in mmproj_file.tensors.items() if not name.startswith("xattn.")),
        )
        self._mmproj = native.Mmproj(
            mmproj,
            device=self.placement.tower,
            layer_devices=self.placement.layers,
            n_threads=self.n_threads,
            cross_kv_type=cross_kv_type,
            repack=repack,
            progress=_part(progress, 0.0, 0.5),
        )
        self.hparams: dict[str, Any] = self._mmproj.hparams
        self.image_token_embd: npt.NDArray[np.float32] = self._mmproj.image_token_embd
        check_pair(text_file, mmproj_file, self.hparams)
        self.is_graft = pairing_hash(text_file) != self.hparams["pairing_hash"]
        self._weights = TextWeights(
            load_text(
                text_file,
                n_gpu_layers=n_gpu_layers,
                use_mmap=use_mmap,
                repack=repack,
                placement=self.placement,
                progress=_part(progress, 0.5, 1.0),
            )
        )
        ends = self.text_metadata.get("tokenizer.ggml.eos_token_ids")  # where llama.cpp's keys are too few
        self.tokenizer = Tokenizer(
            llama_cpp.llama_model_get_vocab(self.handle),
            [i for i in ends if type(i) is int] if isinstance(ends, list) else (),
        )
        self.preprocessor = PreprocessorConfig.from_gguf(self.mmproj_metadata)
        self.template = pair_template((text, self.text_metadata), (mmproj, self.mmproj_metadata), self.tokenizer)

    @property
    def weights(self) -> "TextWeights":
        """The text model; contexts hold it for as long as they live."""
        if self._weights is None:
            raise BackendError("the model is closed")
        return self._weights

    @property
    def handle(self) -> Any:
        """The llama_model pointer."""
        return self.weights.handle

    @property
    def mmproj(self) -> native.Mmproj:
        """The native.Mmproj."""
        if self._mmproj is None:
            raise BackendError("the model is closed")
        return self._mmproj

    @property
    def name(self) -> str:
        """The model's name as the text file has it, else the file's."""
        return str(self.text_metadata.get("general.name") or self.text_path.stem)

    @property
    def text_paths(self) -> list[Path]:
        """The text file, or all files of a split one."""
        return self._files[0].paths

    @property
    def n_embd(self) -> int:
        """Width of the text model."""
        return int(self.hparams["text_n_embd"])

    @functools.cached_property
    def n_vocab(self) -> int:
        """Tokens that the model can write: rows of lm_head, the image token and its padding not among them.

        Of a grafted text model with tokens of its own behind them, all rows.
        """
        n_vocab, n_tokens = int(self.hparams["text_n_vocab"]), self.tokenizer.n_tokens
        is_more = any(i != self.image_token and not self.tokenizer.is_unused(i) for i in range(n_vocab, n_tokens))
        return n_tokens if is_more else min(n_vocab, n_tokens)

    @property
    def n_ctx_train(self) -> int:
        """Positions that the model was trained for."""
        return int(llama_cpp.llama_model_n_ctx_train(self.handle))

    @functools.cached_property
    def image_token(self) -> int:
        """The token that stands for an image, see `Tokenizer.image_token`."""
        return self.tokenizer.image_token(int(self.hparams["image_token_id"]))

    @property
    def sampling_defaults(self) -> SamplingParams:
        """The model's own generation defaults; what it does not say, as Meta's instruct model has it."""
        found = {k: self.text_metadata[v] for k, v in _SAMPLING_KEYS.items() if v in self.text_metadata}
        return SamplingParams.from_options(SamplingParams(), found)

    @functools.cached_property
    def text_fingerprint(self) -> str:
        """Identifies the text weights, their quantization included: what a KV cache was made by."""
        found = weights_fingerprint(self._files[0], "llama.")
        _drop_pages(self._files[0])
        return found

    @functools.cached_property
    def image_fingerprint(self) -> str:
        """Identifies what ImageStates are made by and how they lie in memory.

        A digest of the mmproj's weights, the preprocessing, cross_kv_type, the form of cross attention and
        the tower's kernels (a file that another CPU wrote is another one's).
        """
        weights = weights_fingerprint(self._files[1], "clip.")
        _drop_pages(self._files[1])  # that it sampled, and those around them
        form = f"{self.mmproj.attention_form} {self.mmproj.kernels}"
        text = json.dumps([weights, asdict(self.preprocessor), self.cross_kv_type, form])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def kv_row_elements(self) -> tuple[int, int]:
        """Elements of a position's keys and of its values, in one self-attention layer."""
        heads, head = int(self.hparams["text_n_head_kv"]), self.n_embd // int(self.hparams["text_n_head"])
        lengths = (self.text_metadata.get(f"llama.attention.{kind}_length", head) for kind in ("key", "value"))
        k, v = (heads * int(length) for length in lengths)
        return k, v

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(positions of a tile, tiles at most, elements of an image token's keys or values in one layer)."""
        h = self.hparams
        return h["n_positions"], h["max_num_tiles"], h["text_n_head_kv"] * self.n_embd // h["text_n_head"]

    def close(self) -> None:
        """Free both files, the text model once the last context on it is closed. Idempotent."""
        if tokenizer := getattr(self, "tokenizer", None):
            tokenizer.close()
        self._mmproj = None
        weights, self._weights = getattr(self, "_weights", None), None
        if weights is not None:
            weights.release()

    def __del__(self) -> None:
        self.close()


class TextWeights:
    """A llama_model, freed when its last user releases it: no context may outlive it, in whatever order things die."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._users = 1

    def acquire(self) -> "TextWeights":
        """One user more."""
        self._users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            llama_cpp.llama_model_free(self.handle)


def _part(progress: Progress | None, first: float, last: float) -> Progress | None:
    return progress and (lambda fraction: progress(first + fraction * (last - first)))


_DROPS = 16  # while a file is loaded


def load_text(
    file: GGUFFile,
    *,
    n_gpu_layers: int = 0,
    use_mmap: bool = True,
    repack: bool = True,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Any:
    """A llama_model of a file that has passed `check_text`; options as of Model.

    llama.cpp brings all of the file into memory and copies most weights from there, into the layout of its CPU kernels
    or to a GPU. Without the pages that it has read being given back, these weights would count twice.

    placement: how many layers each device takes; None: as llama.cpp chooses.

    Raises:
        BackendError: llama.cpp cannot load it. Cancelled: progress returned False.
    """
    stopped: list[BaseException | None] = []
    n_drops = 0

    def on_progress(fraction: float, _user_data: Any) -> bool:
        nonlocal n_drops
        try:
            if fraction * _DROPS >= n_drops:
                n_drops += 1
                _drop_pages(file)
            go_on = progress is None or progress(fraction) is not False
        except BaseException as e:  # must not pass through C
            stopped.append(e)
            return False
        if not go_on:
            stopped.append(None)
        return go_on

    params = llama_cpp.llama_model_default_params()
    set_fields(
        params,
        n_gpu_layers=0x7FFFFFFF if n_gpu_layers < 0 else n_gpu_layers,
        load_mode=llama_cpp.LLAMA_LOAD_MODE_AUTO if use_mmap else llama_cpp.LLAMA_LOAD_MODE_NONE,
        use_extra_bufts=repack,
        progress_callback=llama_cpp.llama_progress_callback(on_progress),
    )
    if placement and placement.devices:
        devices = (ctypes.c_void_p * (len(placement.devices) + 1))(*placement.devices)  # the last one is NULL
        shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*placement.shares)
        set_fields(params, devices=ctypes.addressof(devices), tensor_split=shares)
    handle = llama_cpp.llama_model_load_from_file(os.fsencode(file.path), params)
    _drop_pages(file)
    if stopped:
        raise stopped[0] or Cancelled(f"loading {file.path} was stopped")
    if not handle:
        raise BackendError(
            f"llama.cpp could not load {file.path}: there may be too little memory, or the file is damaged; "
            "set logging for 'pyvllama.llama_cpp' to see its own words"
        )
    return handle


def _drop_pages(file: GGUFFile) -> None:
    for path in file.paths:
        native.drop_mapped_pages(path)
