"""LoRA adapters in PEFT's form, by NumPy, and the weights that they give."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import factories
import numpy as np
import raw_safetensors
from tiny_configs import CONFIGS, TinyConfig

PREFIX = "base_model.model."
SELF = "language_model.model.layers.{}.self_attn."
MLP = "language_model.model.layers.{}.mlp."
EMBED, HEAD = "language_model.model.embed_tokens", "language_model.lm_head"
LAYOUTS = {"hub": str, "transformers5": lambda n: factories.hub_to_transformers5(n + ".weight").removesuffix(".weight")}


def values(config: TinyConfig, module: str) -> np.ndarray:
    """The base's weight of a module, as `factories` makes it."""
    name = module + ".weight"
    return factories.tensor_values(config, name, factories.tensor_shapes(config)[name])


def factors(module: str, shape: Sequence[int], rank: int, seed: object = 0) -> tuple[np.ndarray, np.ndarray]:
    """A [r, n_per_row] and B [n_rows, r] of a weight, float32, big enough to be seen."""
    rng = factories.random_state("lora", module, rank, seed)
    n_per_row = math.prod(shape[1:])
    a = rng.standard_normal((rank, n_per_row)) / math.sqrt(n_per_row)
    return a.astype(np.float32), (0.5 * rng.standard_normal((shape[0], rank))).astype(np.float32)


def write_adapter(
    out_dir: Path,
    modules: Sequence[str],
    *,
    config: TinyConfig = CONFIGS["small"],
    rank: int = 4,
    alpha: float = 8,
    ranks: Mapping[str, int] | None = None,
    layout: str = "hub",
    dtype: str = "F32",
    embeddings: Sequence[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    seed: object = 0,
    **settings: Any,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        modules: Hub names of linear (or convolution) modules.
        rank, alpha: of all modules that `ranks` does not name.
        embeddings: Hub names of modules with lora_embedding_A and _B.
        extra: full names -> further tensors.
        settings: more of adapter_config.json.
    """
    tensors: dict[str, np.ndarray] = {}
    rename = LAYOUTS[layout]
    shapes = factories.tensor_shapes(config)
    for module in (*modules, *embeddings):
        shape = shapes[module + ".weight"]
        a, b = factors(module, shape, (ranks or {}).get(module, rank), seed)
        name = PREFIX + rename(module)
        if module in embeddings:
            tensors |= {f"{name}.lora_embedding_A": b.T, f"{name}.lora_embedding_B": a.T}
        elif len(shape) == 4:
            tensors |= {
                f"{name}.lora_A.weight": a.reshape(-1, *shape[1:]),
                f"{name}.lora_B.weight": b[:, :, None, None],
            }
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    tensors |= extra or {}
    stored = {name: raw_safetensors.plain(x, dtype) for name, x in tensors.items()}
    raw_safetensors.write(out_dir / "adapter_model.safetensors", stored)
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted({m.rsplit(".", 1)[-1] for m in (*modules, *embeddings)}),
    }
    (out_dir / "adapter_config.json").write_text(json.dumps(adapter | settings))
    return out_dir


def change(config: TinyConfig, module: str, rank: int = 4, scale: float = 2.0, seed: object = 0) -> np.ndarray:
    """scale * B @ A, in the weight's shape."""
    shape = factories.tensor_shapes(config)[module + ".weight"]
    a, b = factors(module, shape, rank, seed)
    return (np.float32(scale) * (b @ a)).reshape(shape)


def text_modules(config: TinyConfig) -> list[str]:
    """All matrices of the self-attention layers."""
    return [
        kind.format(i) + name
        for i in range(config.num_hidden_layers)
        if i not in config.cross_attention_layers
        for kind, names in (
            (SELF, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (MLP, ("gate_proj", "up_proj", "down_proj")),
        )
        for name in names
    ]


def all_modules(config: TinyConfig) -> list[str]:
    """Every linear layer of the model, and the patch embedding."""
    names = [name.removesuffix(".weight") for name, s in factories.tensor_shapes(config).items() if len(s) in (2, 4)]
    return [name for name in names if "embed" not in name or "patch" in name]
