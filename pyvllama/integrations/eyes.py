"""What a loaded text model lacks to see: the mmproj of its pair, checked against its file."""

from typing import Any

from pyvllama._runtime import llama_cpp, native
from pyvllama.config import PreprocessorConfig
from pyvllama.gguf_file import GGUFFile
from pyvllama.pair_checks import check_pair, check_text
from pyvllama.pair_template import pair_template
from pyvllama.placement import place
from pyvllama.template import ChatTemplate
from pyvllama.tokenizer import Tokenizer
from pyvllama.types import Pair
from pyvllama.vision_cache import VisionCache

__all__ = ["Eyes"]


class Eyes:
    """A pair's mmproj, for a text model that somebody else loads.

    Args:
        pair: both files.
        n_gpu_layers: text layers on the GPU, -1 for all; any but 0 also puts the mmproj there.
        n_threads: for encoding images.
        cross_kv_type: type of the images' keys and values: f16, bf16, f32 or q8_0.
        cache_bytes: memory for encoded images that may come again.

    Raises:
        FormatError: a file is damaged, of another kind, or the two do not fit.
        BackendError: too little memory.
    """

    def __init__(self, pair: Pair, *, n_gpu_layers: int, n_threads: int, cross_kv_type: str, cache_bytes: int) -> None:
        self.pair = pair
        text_file, mmproj_file = GGUFFile(pair.text), GGUFFile(pair.mmproj)
        check_text(text_file)
        llama_cpp.llama_backend_init()
        n_layers = text_file.metadata.get("llama.block_count")
        where = place(n_layers, n_gpu_layers, mmproj_offload=True, n_tower_bytes=0)
        self.mmproj = native.Mmproj(
            pair.mmproj,
            device=where.tower,
            # how it divides layers among several GPUs is llama.cpp's secret here: rows travel to the first of them
            layer_devices=where.layers if len(where.devices) == 1 else (),
            n_threads=n_threads,
            cross_kv_type=cross_kv_type,
        )
        hparams = self.mmproj.hparams
        check_pair(text_file, mmproj_file, hparams)
        self.text_paths = text_file.paths
        self._text_metadata, self._mmproj_metadata = text_file.metadata, mmproj_file.metadata
        self.preprocessor = PreprocessorConfig.from_gguf(mmproj_file.metadata)
        self.image_token_id = int(hparams["image_token_id"])
        self.image_token_embd = self.mmproj.image_token_embd
        itself: Any = self  # has of a Model what the cache uses
        self.cache = VisionCache(itself, cache_bytes)

    def template(self, tokenizer: Tokenizer) -> ChatTemplate:
        """The pair's chat template."""
        return pair_template(
            (self.pair.text, self._text_metadata),
            (self.pair.mmproj, self._mmproj_metadata),
            tokenizer,
        )
