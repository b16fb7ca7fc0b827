"""What a Hugging Face checkpoint says in its JSON files, made from Meta's params.json and the tensors' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyvllama.config import aspect_ratios
from pyvllama.errors import CheckpointError
from pyvllama.fields import Fields

__all__ = ["CHAT_TEMPLATE", "Sizes", "cross_attention_layers", "hf_files"]

Sizes = Mapping[str, int]
"""What only the tensors tell: `dim_ffn`, `vision_width`, `vision_ffn`, `vision_layers`, `vision_global_layers`,
`patch_size`, `max_num_tiles`."""

# Constants of Meta's code (llama_models/llama3/multimodal/model.py), in no file of a checkpoint.
_VISION_HEADS = 16
_RETURN_INTERMEDIATE = (3, 7, 15, 23, 30)
_VISION_NORM_EPS = 1e-5
_MAX_TILES = 64
_SCALED_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- set role = 'ipython' if message.role == 'tool' else message.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|image|>' }}
            {%- elif part.type == 'text' %}
                {{- part.text | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
"""Llama 3's dialogue format. Meta's checkpoints hold no template; a system prompt may stand before images."""


def cross_attention_layers(n_layers: int, n_cross: int) -> tuple[int, ...]:
    """HF indices of the cross-attention layers, in the order in which Meta numbers them.

    Meta spreads them evenly, counted from the last self-attention layer; each runs before the layer it is tied to, so
    in one common numbering number j has j layers of its own kind before it.

    Args:
        n_layers: self-attention layers.
        n_cross: cross-attention layers.
    """
    step = math.ceil(n_layers / n_cross)
    schedule = sorted(list(range(n_layers))[::-1][::step][:n_cross])
    return tuple(layer + j for j, layer in enumerate(schedule))


def hf_files(params: Mapping[str, Any], sizes: Sizes, specials: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """config.json, generation_config.json, preprocessor_config.json and tokenizer_config.json.

    Args:
        params: of params.json.
        sizes: see `Sizes`.
        specials: text of the special tokens -> id.

    Raises:
        ConfigError: params.json lacks keys (one message lists all), or their values are no sizes.
        CheckpointError: its values contradict the tensors'.
    """
    r = Fields(params, "params.json")
    text = r.build(lambda: _text(r, sizes))
    image_size = r.build(lambda: r.count("vision_chunk_size"))
    n_tiles = sizes["max_num_tiles"]
    if n_tiles > _MAX_TILES:
        raise CheckpointError(f"the tensors hold embeddings for {n_tiles} tiles; at most {_MAX_TILES} are supported")
    if (said := params.get("vision_max_num_chunks", n_tiles)) != n_tiles:
        raise CheckpointError(
            f"params.json: vision_max_num_chunks is {said!r}, but the tensors hold embeddings for {n_tiles}"
        )
    ids = {
        "bos_token_id": specials["<|begin_of_text|>"],
        "eos_token_id": [specials[token] for token in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")],
        "pad_token_id": specials["<|finetune_right_pad_id|>"],
    }
    vision = {
        "hidden_size": sizes["vision_width"],
        "intermediate_size": sizes["vision_ffn"],
        "attention_heads": _VISION_HEADS,
        "num_hidden_layers": sizes["vision_layers"],
        "num_global_layers": sizes["vision_global_layers"],
        "intermediate_layers_indices": list(_RETURN_INTERMEDIATE),
        "vision_output_dim": sizes["vision_width"] * (1 + len(_RETURN_INTERMEDIATE)),
        "image_size": image_size,
        "patch_size": sizes["patch_size"],
        "max_num_tiles": n_tiles,
        "supported_aspect_ratios": [list(grid) for grid in aspect_ratios(n_tiles)],
        "norm_eps": _VISION_NORM_EPS,
    }
    return {
        "config.json": {
            "model_type": "mllama",
            "image_token_index": text["vocab_size"],
            "text_config": text | ids,
            "vision_config": vision,
        },
        "generation_config.json": ids | {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        "preprocessor_config.json": {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "max_image_tiles": n_tiles,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": image_size, "width": image_size},
        },
        "tokenizer_config.json": {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "chat_template": CHAT_TEMPLATE,
        },
    }


def _text(r: Fields, sizes: Sizes) -> dict[str, Any]:
    n_layers, n_cross = r.count("n_layers"), r.count("vision_num_cross_attention_layers")
    n_heads = r.count("n_heads")
    cross = cross_attention_layers(n_layers, n_cross) if n_layers and n_cross else ()
    scaled = r.optional("use_scaled_rope", False) is True
    return {
        "vocab_size": r.count("vocab_size"),
        "hidden_size": r.count("dim"),
        "intermediate_size": sizes["dim_ffn"],
        "num_hidden_layers": n_layers + len(cross),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads if r.optional("n_kv_heads", None) is None else r.count("n_kv_heads"),
        "cross_attention_layers": list(cross),
        "rms_norm_eps": r.number("norm_eps"),
        "rope_theta": r.number("rope_theta"),
        "rope_scaling": dict(_SCALED_ROPE) if scaled else None,
        "max_position_embeddings": 131072 if scaled else 8192,
        "tie_word_embeddings": False,
    }
