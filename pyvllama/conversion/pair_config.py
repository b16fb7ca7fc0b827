"""config.json, generation_config.json and preprocessor_config.json from the keys of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyvllama.config import EXTRA_EMBEDDING_ROWS, Llama3Rope, MllamaConfig, PreprocessorConfig, TextConfig
from pyvllama.conversion.metadata import FORMAT_VERSION, SAMPLING_KEYS, shortest_decimal
from pyvllama.conversion.pair_tensors import ROPE_FACTORS
from pyvllama.conversion.rope_scaling import find_rope_scaling
from pyvllama.errors import ConfigError, FormatError
from pyvllama.fields import Fields, Triple
from pyvllama.gguf_file import GGUFFile
from pyvllama.pair_checks import check_pair, check_text

__all__ = ["check_files", "config_json", "generation_json", "preprocessor_json", "with_dtype"]

_MMPROJ_SHAPES = {
    "text_n_embd": "clip.mllama.text.embedding_length",
    "text_n_head": "clip.mllama.text.attention.head_count",
    "text_n_head_kv": "clip.mllama.text.attention.head_count_kv",
    "text_n_vocab": "clip.mllama.text.vocab_size",
}
_SAME = (
    # text file                                  mmproj
    ("llama.feed_forward_length", "clip.mllama.text.feed_forward_length"),
    ("llama.attention.layer_norm_rms_epsilon", "clip.mllama.text.attention.layer_norm_rms_epsilon"),
)
"""What both files say of their layers, and config.json says once for all of them."""
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation of CLIP's pictures, as everybody writes them; float32 would be content with other last digits."""


def check_files(text: GGUFFile, mmproj: GGUFFile) -> None:
    """See that two files are a pair that one checkpoint can hold.

    Raises:
        FormatError: one is of another kind, or they do not fit; names the keys and the values that differ.
    """
    if mmproj.metadata.get("clip.projector_type") != "mllama":
        raise FormatError(f"{mmproj.path}: this is no mmproj file of Llama 3.2 Vision")
    if (version := mmproj.metadata.get("clip.mllama.format_version")) != FORMAT_VERSION:
        raise FormatError(
            f"{mmproj.path}: clip.mllama.format_version is {version!r}; this program reads {FORMAT_VERSION}"
        )
    check_text(text)
    r = Fields(mmproj.metadata, str(mmproj.path))
    try:
        sizes = r.build(lambda: {name: r.count(key) for name, key in _MMPROJ_SHAPES.items()})
        cross = r.build(lambda: r.indices("clip.mllama.cross_attention_layers"))
        n_layers = r.build(lambda: r.count("clip.mllama.text.block_count"))
    except ConfigError as e:
        raise FormatError(str(e)) from e
    check_pair(text, mmproj, {**sizes, "text_n_layer_self": n_layers - len(cross)})
    wrong = [
        f"{ours} is {text.metadata.get(ours)}, {theirs} is {mmproj.metadata.get(theirs)}"
        for ours, theirs in _SAME
        if text.metadata.get(ours) != mmproj.metadata.get(theirs)
    ]
    n_tokens, n_vocab = len(text.metadata["tokenizer.ggml.tokens"]), sizes["text_n_vocab"]
    if n_tokens not in (n_vocab, n_vocab + EXTRA_EMBEDDING_ROWS):
        wrong.append(f"the vocabulary has {n_tokens} tokens, the mmproj was made for {n_vocab} (and 8 more)")
    elif n_tokens == n_vocab and mmproj.metadata.get("clip.mllama.image_token_id") != n_vocab:
        wrong.append(f"the text file has no rows behind its {n_vocab} tokens, and the image token stands before them")
    if wrong:
        raise FormatError(f"{text.path} and {mmproj.path} are no checkpoint together: {'; '.join(wrong)}")


def config_json(text: GGUFFile, mmproj: GGUFFile) -> dict[str, Any]:
    """config.json of a pair that `check_files` has seen, without token ids and types.

    Raises:
        FormatError: keys are missing, or their values make no Llama 3.2 Vision model.
    """
    try:
        t, m = Fields(text.metadata, str(text.path)), Fields(mmproj.metadata, str(mmproj.path))
        config: dict[str, Any] = {
            "architectures": ["MllamaForConditionalGeneration"],
            "model_type": "mllama",
            "image_token_index": m.build(lambda: m.whole("clip.mllama.image_token_id")),
            "text_config": t.build(lambda: _text_config(t, m)),
            "vision_config": m.build(lambda: _vision_config(m)),
        }
        parsed = MllamaConfig.from_hf_json(config)
    except ConfigError as e:
        raise FormatError(f"{text.path} and {mmproj.path} make no config.json: {e}") from e
    config["text_config"]["rope_scaling"] = _rope_scaling(text, parsed.text)
    return config


def _text_config(t: Fields, m: Fields) -> dict[str, Any]:
    for key, value in t.values.items():
        if key.startswith(("llama.rope.scaling.", "llama.rope.scale_linear")) and value != "none":
            t.refuse(key, value, "left out: Llama 3 scales by rope_freqs.weight")
    return {
        "model_type": "mllama_text_model",
        "vocab_size": m.count("clip.mllama.text.vocab_size"),
        "hidden_size": t.count("llama.embedding_length"),
        "intermediate_size": t.count("llama.feed_forward_length"),
        "num_hidden_layers": m.count("clip.mllama.text.block_count"),
        "num_attention_heads": t.count("llama.attention.head_count"),
        "num_key_value_heads": t.count("llama.attention.head_count_kv"),
        "hidden_act": "silu",
        "cross_attention_layers": list(m.indices("clip.mllama.cross_attention_layers")),
        "rms_norm_eps": shortest_decimal(t.number("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest_decimal(t.number("llama.rope.freq_base")),
        "rope_scaling": None,
        "max_position_embeddings": t.count("llama.context_length"),
        "tie_word_embeddings": False,
        "dropout": 0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _vision_config(m: Fields) -> dict[str, Any]:
    hidden_size = m.count("clip.vision.embedding_length")
    kept = list(m.indices("clip.mllama.intermediate_layers_indices"))
    grids = m.indices("clip.mllama.supported_aspect_ratios")
    return {
        "model_type": "mllama_vision_model",
        "hidden_size": hidden_size,
        "intermediate_size": m.count("clip.vision.feed_forward_length"),
        "attention_heads": m.count("clip.vision.attention.head_count"),
        "num_hidden_layers": m.count("clip.vision.block_count"),
        "num_global_layers": m.count("clip.mllama.global_block_count"),
        "intermediate_layers_indices": kept,
        "vision_output_dim": hidden_size * (1 + len(kept)),
        "image_size": m.count("clip.vision.image_size"),
        "patch_size": m.count("clip.vision.patch_size"),
        "num_channels": 3,
        "max_num_tiles": m.count("clip.mllama.max_num_tiles"),
        "hidden_act": "gelu",
        "norm_eps": shortest_decimal(m.number("clip.vision.attention.layer_norm_epsilon")),
        "initializer_range": 0.02,
        "supported_aspect_ratios": [list(grids[i : i + 2]) for i in range(0, len(grids), 2)],
    }


def _rope_scaling(text: GGUFFile, config: TextConfig) -> dict[str, Any] | None:
    if ROPE_FACTORS not in text.tensors:
        return None
    found: Llama3Rope | None = find_rope_scaling(config, text.f32(ROPE_FACTORS))
    if found is None:
        raise FormatError(
            f"{text.path}: {ROPE_FACTORS} holds factors that no rope_scaling of a Llama 3 gives "
            "(low_freq_factor 1, high_freq_factor 4): they cannot be written as a config.json"
        )
    return {
        "rope_type": "llama3",
        "factor": found.factor,
        "low_freq_factor": found.low_freq_factor,
        "high_freq_factor": found.high_freq_factor,
        "original_max_position_embeddings": found.original_max_position_embeddings,
    }


def with_dtype(config: Mapping[str, Any], torch_dtype: str) -> dict[str, Any]:
    """A config.json that says which type most of its tensors have."""
    halves = {name: config[name] | {"torch_dtype": torch_dtype} for name in ("text_config", "vision_config")}
    return {**config, **halves, "torch_dtype": torch_dtype}


def generation_json(text: GGUFFile) -> dict[str, Any]:
    """generation_config.json, without token ids: what the file recommends for sampling.

    Raises:
        FormatError: a value is no number.
    """
    sources = {key: (name, kind) for name, key, kind in SAMPLING_KEYS}
    keys = [key for key in text.metadata if key in sources]
    r = Fields(text.metadata, str(text.path))
    generation: dict[str, Any] = {"do_sample": True} if keys else {}
    try:
        for key in keys:
            name, kind = sources[key]
            value = r.whole(key) if kind == "i32" else shortest_decimal(r.number(key))
            if name == "temperature" and value == 0:  # the likeliest token, which transformers calls not to sample
                generation["do_sample"] = False
                if key == keys[-1]:  # there was no temperature beside do_sample
                    continue
                value = 1.0
            generation[name] = value
    except ConfigError as e:
        raise FormatError(str(e)) from e
    return generation


def preprocessor_json(mmproj: GGUFFile) -> dict[str, Any]:
    """preprocessor_config.json.

    Raises:
        FormatError: keys are missing or of another type.
    """
    p = PreprocessorConfig.from_gguf(mmproj.metadata)
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _written(p.image_mean, _CLIP[0]),
        "image_processor_type": "MllamaImageProcessor",
        "image_std": _written(p.image_std, _CLIP[1]),
        "max_image_tiles": p.max_num_tiles,
        "processor_class": "MllamaProcessor",
        "resample": p.resample,
        "rescale_factor": p.rescale_factor,
        "size": {"height": p.tile_size, "width": p.tile_size},
    }


def _written(values: Triple, usual: Triple) -> list[float]:
    """The usual numbers where the file's are those in float32."""
    return (
        list(usual)
        if np.array_equal(np.asarray(values, np.float32), np.asarray(usual, np.float32))
        else [*map(shortest_decimal, values)]
    )
