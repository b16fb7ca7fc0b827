"""How Ollama names and stores the tensors of Llama 3.2 Vision: a table, the order of rows, the gates.

Source: ollama/ollama, `convert/convert_mllama.go`, `convert/convert_llama.go` and `llama/mllama.cpp`. A model's files
are of one of three generations:

- G1 (November 2024 to May 2025): a text file and a projector file;
- G2 (May 2025, some days): one file, from a converter with faults;
- G3 (since then): one file.
"""

from __future__ import annotations

import re
from enum import Enum

import numpy as np

from pyvllama.conversion import transforms

__all__ = [
    "KNOWN_BLOBS",
    "GateKind",
    "Generation",
    "gate_kind",
    "invert_tanh",
    "ollama_name",
    "ollama_names",
    "rope_heads",
    "unpermute",
]


class Generation(Enum):
    """Which of Ollama's converters wrote a file."""

    G1 = "G1"
    G2 = "G2"
    G3 = "G3"


KNOWN_BLOBS = {
    # llama3.2-vision:11b, the text files of autumn 2024
    "652e85aa1e14c9087a4ccc3ab516fb794cbcf152f8b4b8d3c0b828da4ada62d9": Generation.G1,
    "11f274007f093fefeec994a5dbbb33d0733a4feb87f7ab66dcd7c1069fef0068": Generation.G1,
    # the same, since May 2025
    "9999d473417a8e179d993498195be5f42cab963acc75f4a6b15d981e8b68abed": Generation.G3,
}
"""Blobs of Ollama's library whose generation is known. Source: logs and scripts in public repositories."""

_SELF = "language_model.model.layers.{}."
_LOCAL, _GLOBAL = "vision_model.transformer.layers.{}.", "vision_model.global_transformer.layers.{}."
_GPE = "vision_model.gated_positional_embedding."

# fmt: off
_NAMES = {
    # Hugging Face's name (canonical)                                Ollama's, in all generations
    "language_model.model.embed_tokens.weight":                      "token_embd.weight",
    "language_model.model.norm.weight":                              "output_norm.weight",
    "language_model.lm_head.weight":                                 "output.weight",
    _SELF + "input_layernorm.weight":                                "blk.{}.attn_norm.weight",
    _SELF + "self_attn.q_proj.weight":                               "blk.{}.attn_q.weight",
    _SELF + "self_attn.k_proj.weight":                               "blk.{}.attn_k.weight",
    _SELF + "self_attn.v_proj.weight":                               "blk.{}.attn_v.weight",
    _SELF + "self_attn.o_proj.weight":                               "blk.{}.attn_output.weight",
    _SELF + "cross_attn.q_proj.weight":                              "blk.{}.cross_attn_q_proj.weight",
    _SELF + "cross_attn.k_proj.weight":                              "blk.{}.cross_attn_k_proj.weight",
    _SELF + "cross_attn.v_proj.weight":                              "blk.{}.cross_attn_v_proj.weight",
    _SELF + "cross_attn.o_proj.weight":                              "blk.{}.cross_attn_o_proj.weight",
    _SELF + "cross_attn.q_norm.weight":                              "blk.{}.cross_attn_q_norm.weight",
    _SELF + "cross_attn.k_norm.weight":                              "blk.{}.cross_attn_k_norm.weight",
    _SELF + "cross_attn_attn_gate":                                  "blk.{}.cross_attn_attn_gate",
    _SELF + "cross_attn_mlp_gate":                                   "blk.{}.cross_attn_mlp_gate",
    _SELF + "post_attention_layernorm.weight":                       "blk.{}.ffn_norm.weight",
    _SELF + "mlp.gate_proj.weight":                                  "blk.{}.ffn_gate.weight",
    _SELF + "mlp.up_proj.weight":                                    "blk.{}.ffn_up.weight",
    _SELF + "mlp.down_proj.weight":                                  "blk.{}.ffn_down.weight",
    "vision_model.class_embedding":                                  "v.class_embd",
    "vision_model.patch_embedding.weight":                           "v.patch_embd.weight",
    _GPE + "embedding":                                              "v.position_embd.weight",
    _GPE + "gate":                                                   "v.tile_position_embd.gate",  # see `gate_kind`
    _GPE + "tile_embedding.weight":                                  "v.tile_position_embd.weight",
    "vision_model.pre_tile_positional_embedding.embedding.weight":   "v.pre_tile_position_embd.weight",
    "vision_model.pre_tile_positional_embedding.gate":               "v.pre_tile_position_embd.gate",
    "vision_model.post_tile_positional_embedding.embedding.weight":  "v.post_tile_position_embd.weight",
    "vision_model.post_tile_positional_embedding.gate":              "v.post_tile_position_embd.gate",
    "vision_model.layernorm_pre.weight":                             "v.pre_ln.weight",
    "vision_model.layernorm_pre.bias":                               "v.pre_ln.bias",
    "vision_model.layernorm_post.weight":                            "v.post_ln.weight",
    "vision_model.layernorm_post.bias":                              "v.post_ln.bias",
    _GLOBAL + "gate_attn":                                           "v.global.blk.{}.attn_gate",
    _GLOBAL + "gate_ffn":                                            "v.global.blk.{}.ffn_gate",
    "multi_modal_projector.weight":                                  "mm.0.weight",
    "multi_modal_projector.bias":                                    "mm.0.bias",
}
_TOWER_NAMES = {
    # Hugging Face's, in a layer    G1                   G2, G3
    "self_attn.q_proj.weight":      ("attn_q.weight",    "attn_q.weight"),
    "self_attn.k_proj.weight":      ("attn_k.weight",    "attn_k.weight"),
    "self_attn.v_proj.weight":      ("attn_v.weight",    "attn_v.weight"),
    "self_attn.o_proj.weight":      ("attn_out.weight",  "attn_output.weight"),
    "input_layernorm.weight":       ("ln1.weight",       "attn_norm.weight"),
    "input_layernorm.bias":         ("ln1.bias",         "attn_norm.bias"),
    "post_attention_layernorm.weight": ("ln2.weight",    "ffn_norm.weight"),
    "post_attention_layernorm.bias": ("ln2.bias",        "ffn_norm.bias"),
    "mlp.fc1.weight":               ("ffn_down.weight",  "ffn_up.weight"),
    "mlp.fc1.bias":                 ("ffn_down.bias",    "ffn_up.bias"),
    "mlp.fc2.weight":               ("ffn_up.weight",    "ffn_down.weight"),
    "mlp.fc2.bias":                 ("ffn_up.bias",      "ffn_down.bias"),
}
# fmt: on
_STACKS = ((_LOCAL, "v.blk.{}."), (_GLOBAL, "v.global.blk.{}."))
_LAYER = re.compile(r"(?<=layers\.)\d+")


def ollama_names(generation: Generation) -> dict[str, str]:
    """Hugging Face's name -> Ollama's, `{}` standing for the layer's index, which is Hugging Face's in both."""
    column = 0 if generation is Generation.G1 else 1
    names = dict(_NAMES)
    for hf, ours in _STACKS:
        names |= {hf + kind: ours + columns[column] for kind, columns in _TOWER_NAMES.items()}
    return names


def ollama_name(hf: str, names: dict[str, str]) -> str:
    """Ollama's name of a tensor.

    Args:
        hf: canonical name, with the layer's index in it.
        names: as `ollama_names` gives them.
    """
    found = _LAYER.search(hf)
    return names[_LAYER.sub("{}", hf)].format(found[0] if found else "")


def rope_heads(hf: str, n_head: int, n_head_kv: int, n_head_vision: int, generation: Generation) -> int:
    """Heads of a projection whose rows stand in Ollama's file as for rotary embeddings and must go back; 0 for others.

    Ollama's converter permutes every tensor whose name ends like q or k, those of cross-attention and, in G3, of the
    vision tower too, although neither has rotary embeddings. (In the tower it changes no result: q and k both move.)
    """
    if hf.endswith("cross_attn.q_proj.weight"):
        return n_head
    if hf.endswith("cross_attn.k_proj.weight"):
        return n_head_kv
    if hf.startswith("vision_model.") and hf.endswith((".q_proj.weight", ".k_proj.weight")):
        return n_head_vision if generation is Generation.G3 else 0
    return 0


def unpermute(n_rows: int, n_head: int) -> transforms.Index:
    """The gather that puts interleaved rows back into Hugging Face's order."""
    return transforms.invert(transforms.permute_rope(n_rows, n_head), n_rows)


class GateKind(Enum):
    """What Ollama's file holds of a gate g."""

    NONE = "no gate"
    RAW = "g"
    TANH = "tanh(g)"
    """For the position embedding also 1 - tanh(g), in a tensor of its own, which is not needed."""


def gate_kind(hf: str) -> GateKind:
    """What Ollama's file holds of a tensor, if it is a gate."""
    if hf.endswith((".cross_attn_attn_gate", ".cross_attn_mlp_gate")):
        return GateKind.RAW
    if hf.startswith("vision_model.") and hf.endswith((".gate", ".gate_attn", ".gate_ffn")):
        return GateKind.TANH
    return GateKind.NONE


_SATURATED = np.float32(10.0)
"""tanh of it is 1 in float32."""
_BF16_ULPS = 4


def invert_tanh(value: np.float32) -> np.float32:
    """The raw gate of which Ollama's file holds the tanh.

    If tanh of a BF16 number is `value` within 4 units in the last place (Ollama computes it in float32), that number is
    the answer: Llama 3.2's gates are BF16, so each of them below 7 comes back as it was. Otherwise it is the float32
    number whose tanh comes nearest, within one unit in the last place of `value`.

    Args:
        value: from -1 to 1. At -1 and 1 (|g| > 9) the gate itself is lost; -10 and 10 have the same tanh in float32.
    """
    if abs(value) >= 1:
        return np.float32(np.copysign(_SATURATED, value))
    exact = np.float32(np.arctanh(np.float64(value)))
    bf16 = ((exact.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    if abs(np.tanh(np.float64(bf16)) - np.float64(value)) <= _BF16_ULPS * np.spacing(np.abs(value)):
        return np.float32(bf16)
    candidates = [exact, np.nextafter(exact, np.float32(-np.inf)), np.nextafter(exact, np.float32(np.inf))]
    return min(candidates, key=lambda g: abs(np.tanh(np.float64(g)) - np.float64(value)))
