"""Tiny random Llama 3.2 Vision checkpoints in Hugging Face's form, by NumPy alone.

A tensor's values depend on the seed, its Hub name and its shape, on nothing else: a changed configuration leaves the
other tensors as they were, and both layouts of names hold the same numbers. The generator is NumPy's RandomState,
whose stream is frozen, because stored goldens depend on it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_tokenizer
from tiny_configs import ALL_CONFIGS, TinyConfig

N_EXTRA_EMBEDDINGS = 8  # rows of embed_tokens past lm_head's; the first of them is <|image|>

Edit = Callable[[str, np.ndarray], "np.ndarray | None"]


def tensor_shapes(config: TinyConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, Hub name -> shape."""
    c = config
    hidden, head = c.hidden_size, c.hidden_size // c.num_attention_heads
    kv, ff, v, n_ratios = c.num_key_value_heads * head, c.intermediate_size, c.v_hidden_size, len(c.aspect_ratios) + 1
    text, vision = "language_model.model.", "vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.lm_head.weight": (c.vocab_size, hidden),
        text + "embed_tokens.weight": (c.vocab_size + N_EXTRA_EMBEDDINGS, hidden),
        text + "norm.weight": (hidden,),
        "multi_modal_projector.weight": (hidden, c.vision_output_dim),
        "multi_modal_projector.bias": (hidden,),
        vision + "class_embedding": (v,),
        vision + "patch_embedding.weight": (v, 3, c.patch_size, c.patch_size),
        vision + "gated_positional_embedding.gate": (1,),
        vision + "gated_positional_embedding.embedding": (c.n_positions, v),
        vision + "gated_positional_embedding.tile_embedding.weight": (n_ratios, c.max_num_tiles * c.n_positions * v),
    }
    for side in ("pre", "post"):
        shapes[f"{vision}{side}_tile_positional_embedding.gate"] = (1,)
        shapes[f"{vision}{side}_tile_positional_embedding.embedding.weight"] = (n_ratios, c.max_num_tiles * v)
        shapes[f"{vision}layernorm_{side}.weight"] = shapes[f"{vision}layernorm_{side}.bias"] = (v,)
    for i in range(c.num_hidden_layers):
        layer = f"{text}layers.{i}."
        cross = i in c.cross_attention_layers
        attention = layer + ("cross_attn." if cross else "self_attn.")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (hidden,)
        for name, n_out in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            shapes[f"{attention}{name}.weight"] = (n_out, hidden)
        shapes |= {f"{layer}mlp.{name}.weight": (ff, hidden) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, ff)
        if cross:
            shapes |= {f"{attention}{name}.weight": (head,) for name in ("q_norm", "k_norm")}
            shapes |= {f"{layer}cross_attn_{name}_gate": (1,) for name in ("attn", "mlp")}
    stacks = (("transformer", c.v_num_hidden_layers), ("global_transformer", c.v_num_global_layers))
    for stack, n_layers in stacks:
        for i in range(n_layers):
            layer = f"{vision}{stack}.layers.{i}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (v,)
            shapes |= {f"{layer}self_attn.{name}_proj.weight": (v, v) for name in "qkvo"}
            shapes[layer + "mlp.fc1.weight"], shapes[layer + "mlp.fc1.bias"] = (
                (c.v_intermediate_size, v),
                (c.v_intermediate_size,),
            )
            shapes[layer + "mlp.fc2.weight"], shapes[layer + "mlp.fc2.bias"] = (v, c.v_intermediate_size), (v,)
            if stack == "global_transformer":
                shapes |= {f"{layer}gate_{name}": (1,) for name in ("attn", "ffn")}
    return dict(sorted(shapes.items()))


def random_state(*key: object) -> np.random.RandomState:
    """A generator that depends on the key alone."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little"))


def tensor_values(config: TinyConfig, name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 values of one tensor. Gates are far from zero, norms are near one, matrices keep the scale of their
    input, and the embeddings of tiles that a canvas does not have are zero, as in the real checkpoints.
    """
    rng = random_state(seed, name, shape)
    kind = name.rsplit(".", 1)[-1]
    if "gate" in kind:
        return (rng.uniform(0.3, 1.2, 1) * rng.choice([-1.0, 1.0], 1)).astype(np.float32)
    values = rng.standard_normal(shape)
    if len(shape) == 1:
        scale, mean = {"weight": (0.2, 1.0), "bias": (0.1, 0.0)}.get(kind, (0.5, 0.0))
        return (mean + scale * values).astype(np.float32)
    if "embed_tokens" in name:
        return values.astype(np.float32)
    if "embedding" in name and "patch" not in name:
        values *= 0.5
        if shape[0] == len(config.aspect_ratios) + 1 and name.endswith("embedding.weight"):
            tiles = values.reshape(shape[0], config.max_num_tiles, -1)
            for ratio_id, (rows, cols) in enumerate(((0, 0), *config.aspect_ratios)):
                tiles[ratio_id, rows * cols :] = 0
        return values.astype(np.float32)
    return (values * 1.3 / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def hub_to_transformers5(name: str) -> str:
    """The name under which transformers 5 saves the tensor that the Hub's files call `name`."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def config_files(config: TinyConfig, dtype: str = "float32") -> dict[str, Any]:
    """File name -> JSON value of config.json, generation_config.json and preprocessor_config.json."""
    c, ids = config, tiny_tokenizer.specials(config.vocab_size)
    tokens = {
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
        "pad_token_id": ids["<|finetune_right_pad_id|>"],
    }
    text = {
        "model_type": "mllama_text_model",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "hidden_act": "silu",
        "cross_attention_layers": list(c.cross_attention_layers),
        "rms_norm_eps": 1e-5,
        "rope_theta": c.rope_theta,
        "rope_scaling": dict(c.rope_scaling) if c.rope_scaling else None,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    vision = {
        "model_type": "mllama_vision_model",
        "hidden_size": c.v_hidden_size,
        "intermediate_size": c.v_intermediate_size,
        "attention_heads": c.v_attention_heads,
        "num_hidden_layers": c.v_num_hidden_layers,
        "num_global_layers": c.v_num_global_layers,
        "intermediate_layers_indices": list(c.v_intermediate_layers_indices),
        "vision_output_dim": c.vision_output_dim,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": 3,
        "max_num_tiles": c.max_num_tiles,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "supported_aspect_ratios": [list(ratio) for ratio in c.aspect_ratios],
        "torch_dtype": dtype,
    }
    model = {"architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama", "torch_dtype": dtype}
    return {
        "config.json": model
        | {"image_token_index": c.image_token, "text_config": text | tokens, "vision_config": vision}
        | tokens,
        "generation_config.json": tokens | {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "MllamaImageProcessor",
            "max_image_tiles": c.max_num_tiles,
            "processor_class": "MllamaProcessor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": c.image_size, "width": c.image_size},
        },
    }


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits as uint16, rounded to nearest even; the values must be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


STORED = {"F32": lambda x: x.astype(np.float32), "F16": lambda x: x.astype(np.float16), "BF16": to_bf16}
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """One safetensors file: u64 size of the header, JSON header, the values; dtype is "F32", "F16" or "BF16"."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs = [np.ascontiguousarray(STORED[dtype](t)).tobytes() for t in tensors.values()]
    offset = 0
    for (name, tensor), blob in zip(tensors.items(), blobs, strict=True):
        end = offset + len(blob)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def write_checkpoint(
    out_dir: Path,
    config: TinyConfig | str = "base",
    *,
    seed: int = 0,
    layout: str = "hub",
    dtype: str = "F32",
    n_shards: int = 1,
    edit: Edit | None = None,
    **changes: Any,
) -> Path:
    """Write a checkpoint directory.

    Args:
        out_dir: made if missing.
        config: a configuration or its name in ALL_CONFIGS.
        seed: of all tensors.
        layout: "hub" (`language_model.model.*`) or "transformers5" (`model.language_model.*`).
        dtype: of the file, "F32", "F16" or "BF16".
        n_shards: 1 writes model.safetensors, more write shards and their index.
        edit: called with each Hub name and its float32 values; returns the values to write, or None to leave it out.
        changes: fields of the configuration that differ.

    Returns:
        out_dir.
    """
    config = replace(ALL_CONFIGS[config] if isinstance(config, str) else config, **changes)
    rename = {"hub": str, "transformers5": hub_to_transformers5}[layout]
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values: np.ndarray | None = tensor_values(config, name, shape, seed)
        if edit is not None:
            values = edit(name, values)
        if values is not None:
            tensors[rename(name)] = values
    out_dir.mkdir(parents=True, exist_ok=True)
    files = config_files(config, TORCH_NAMES[dtype]) | tiny_tokenizer.tokenizer_files(config.vocab_size)
    if n_shards == 1:
        write_safetensors(out_dir / "model.safetensors", tensors, dtype)
    else:
        names, weight_map = list(tensors), {}
        for i in range(n_shards):
            file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
            part = names[i * len(names) // n_shards : (i + 1) * len(names) // n_shards]
            write_safetensors(out_dir / file, {name: tensors[name] for name in part}, dtype)
            weight_map |= dict.fromkeys(part, file)
        total = sum(t.size for t in tensors.values()) * (4 if dtype == "F32" else 2)
        files["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for file, value in files.items():
        (out_dir / file).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out_dir


def random_pixels(config: TinyConfig, aspect_ratio: tuple[int, int], *key: object) -> tuple[np.ndarray, int]:
    """(pixel_values float32 [num_tiles, 3, S, S], aspect_ratio_id) of a made-up picture of that canvas."""
    n_tiles = aspect_ratio[0] * aspect_ratio[1]
    pixels = random_state("pixels", *key).standard_normal((n_tiles, 3, config.image_size, config.image_size))
    return pixels.astype(np.float32), config.aspect_ratios.index(aspect_ratio) + 1
