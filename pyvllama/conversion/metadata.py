"""The keys of both files, as tables: name, GGUF type, value. Published names are permanent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyvllama.config import MllamaConfig, PreprocessorConfig
from pyvllama.conversion.policy import FileType
from pyvllama.conversion.vocab import Vocabulary
from pyvllama.fields import Fields

__all__ = ["FORMAT_VERSION", "SAMPLING_KEYS", "mmproj_metadata", "shortest_decimal", "size_label", "text_metadata"]

FORMAT_VERSION = 1
"""Of the mmproj's `clip.mllama.*` keys and tensors."""

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

Keys = dict[str, tuple[str, Any]]

SAMPLING_KEYS = (
    # generation_config.json  key                                GGUF type
    ("temperature", "general.sampling.temp", "f32"),
    ("top_k", "general.sampling.top_k", "i32"),
    ("top_p", "general.sampling.top_p", "f32"),
    ("min_p", "general.sampling.min_p", "f32"),
    ("repetition_penalty", "general.sampling.penalty_repeat", "f32"),
)
"""The sampling defaults of generation_config.json, and the text file's keys for them."""


def text_metadata(
    *,
    name: str,
    config: MllamaConfig,
    vocab: Vocabulary,
    generation: Mapping[str, Any],
    chosen: FileType,
    n_params: int,
) -> Keys:
    """All keys of the text file: what any llama.cpp program expects of a `llama` model."""
    t = config.text
    return {
        **_general(name, "llama", "model", chosen, n_params),
        **_sampling(generation),
        "llama.block_count": ("u32", len(t.self_attention_layers)),
        "llama.context_length": ("u32", t.max_position_embeddings),
        "llama.embedding_length": ("u32", t.hidden_size),
        "llama.feed_forward_length": ("u32", t.intermediate_size),
        "llama.attention.head_count": ("u32", t.num_attention_heads),
        "llama.attention.head_count_kv": ("u32", t.num_key_value_heads),
        "llama.attention.layer_norm_rms_epsilon": ("f32", t.rms_norm_eps),
        "llama.rope.dimension_count": ("u32", t.head_dim),
        "llama.rope.freq_base": ("f32", t.rope_theta),
        "llama.vocab_size": ("u32", t.n_embedding_rows),
        **vocab.to_gguf(),
    }


def mmproj_metadata(
    *,
    name: str,
    config: MllamaConfig,
    preprocessor: PreprocessorConfig,
    chat_template: str | None,
    pairing_hash: str,
    chosen: FileType,
    n_params: int,
) -> Keys:
    """All keys of the mmproj file."""
    t, v = config.text, config.vision
    template: Keys = {} if chat_template is None else {"clip.mllama.chat_template": ("str", chat_template)}
    return {
        **_general(name, "clip", "mmproj", chosen, n_params),
        "clip.has_vision_encoder": ("bool", True),
        "clip.projector_type": ("str", "mllama"),
        **preprocessor.to_gguf(),
        "clip.vision.patch_size": ("u32", v.patch_size),
        "clip.vision.embedding_length": ("u32", v.hidden_size),
        "clip.vision.feed_forward_length": ("u32", v.intermediate_size),
        "clip.vision.block_count": ("u32", v.num_hidden_layers),
        "clip.vision.attention.head_count": ("u32", v.attention_heads),
        "clip.vision.attention.layer_norm_epsilon": ("f32", v.norm_eps),
        "clip.vision.projection_dim": ("u32", t.hidden_size),
        "clip.mllama.format_version": ("u32", FORMAT_VERSION),
        "clip.mllama.global_block_count": ("u32", v.num_global_layers),
        "clip.mllama.intermediate_layers_indices": ("i32[]", list(v.intermediate_layers_indices)),
        "clip.mllama.supported_aspect_ratios": ("i32[]", [n for grid in v.supported_aspect_ratios for n in grid]),
        "clip.mllama.cross_attention_layers": ("i32[]", list(t.cross_attention_layers)),
        "clip.mllama.text.block_count": ("u32", t.num_hidden_layers),
        "clip.mllama.text.embedding_length": ("u32", t.hidden_size),
        "clip.mllama.text.feed_forward_length": ("u32", t.intermediate_size),
        "clip.mllama.text.vocab_size": ("u32", t.vocab_size),
        "clip.mllama.text.attention.head_count": ("u32", t.num_attention_heads),
        "clip.mllama.text.attention.head_count_kv": ("u32", t.num_key_value_heads),
        "clip.mllama.text.attention.layer_norm_rms_epsilon": ("f32", t.rms_norm_eps),
        "clip.mllama.image_token_id": ("u32", config.image_token_index),
        **template,
        "clip.mllama.pairing_hash": ("str", pairing_hash),
    }


def shortest_decimal(value: float) -> float:
    """The number that somebody has written of which an f32 key holds the nearest: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def size_label(n_params: int) -> str:
    """A number of parameters as file names say it: 8.0B, 12.7M, 260K."""
    for unit, label in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n_params >= unit * 0.9995:
            return f"{n_params / unit:.{0 if n_params >= 10 * unit else 1}f}{label}"
    return f"{n_params / 1e3:.0f}K"


def _general(name: str, architecture: str, kind: str, chosen: FileType, n_params: int) -> Keys:
    return {
        "general.architecture": ("str", architecture),
        "general.type": ("str", kind),
        "general.name": ("str", name),
        "general.size_label": ("str", size_label(n_params)),
        "general.file_type": ("u32", chosen.number),
        "general.quantization_version": ("u32", _QUANTIZATION_VERSION),
    }


def _sampling(generation: Mapping[str, Any]) -> Keys:
    """Defaults that the model's makers recommend; temperature 0 (the likeliest token) where they do not sample."""
    given = Fields(generation, "generation_config.json")
    keys: Keys = {
        key: (kind, given.whole(source) if kind == "i32" else given.number(source))
        for source, key, kind in SAMPLING_KEYS
        if generation.get(source) is not None
    }
    if generation.get("do_sample") is False:
        keys["general.sampling.temp"] = ("f32", 0.0)
    return keys
