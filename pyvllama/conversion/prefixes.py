"""Names of tensors as training leaves them: with what PEFT, torch.compile, DDP and FSDP wrap around modules.

What a wrapper adds to a name is a segment between dots that no name of an Mllama tensor has, or one `model.` more in
front. Both go; what is left is one of the two layouts that `tensor_map.ALIASES` knows.
"""

from __future__ import annotations

import re

__all__ = ["LORA_PART", "unwrapped"]

_WRAPPERS = frozenset(
    {
        "base_model",  # PEFT's PeftModel, with a `model` behind it
        "base_layer",  # PEFT's layers: the weight beside lora_A and lora_B
        "_orig_mod",  # torch.compile, of a whole model or of each layer
        "module",  # DistributedDataParallel, DeepSpeed
        "_forward_module",  # Lightning Fabric
        "_fsdp_wrapped_module",  # FullyShardedDataParallel, around the model and around each layer
        "_checkpoint_wrapped_module",  # activation checkpointing
    }
)

LORA_PART = re.compile(r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save|original_module)(\.|$)")
"""Occurs in the names of an adapter that has not been merged."""


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers added; a name of no wrapped module is returned as it is.

    >>> unwrapped("_orig_mod.base_model.model.model.language_model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    >>> unwrapped("module.model.language_model.model.norm.weight")
    'language_model.model.norm.weight'
    """
    segments = [s for s in name.split(".") if s not in _WRAPPERS]
    n_models = next((i for i, s in enumerate(segments) if s != "model"), 0)
    inner = segments[n_models:]
    if inner[:1] == ["language_model"]:
        # The Hub's layout has a `model` below language_model, transformers 5 has one above it.
        below = next((i for i, s in enumerate(inner[1:]) if s != "model"), 0)
        if inner[1 + below : 2 + below] == ["lm_head"]:
            return ".".join(["language_model", *inner[1 + below :]])
        above = ["language_model", "model"] if below else ["model", "language_model"]
        return ".".join([*above, *inner[1 + below :]])
    if inner[:1] and inner[0] in ("vision_model", "multi_modal_projector", "lm_head"):
        return ".".join(inner)
    return name
