"""THE TABLE: every tensor of an HF Mllama checkpoint, and what becomes of it. Data, and the few lines that expand it.

A name with `{self}`, `{cross}`, `{local}` or `{global}` stands for one tensor in each layer of that kind. In GGUF the
self-attention layers are renumbered 0, 1, 2, ...; all others keep their HF index. Published names are permanent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import MllamaConfig
from pyvllama.conversion import transforms
from pyvllama.conversion.policy import Layer, Role
from pyvllama.conversion.prefixes import unwrapped

__all__ = [
    "ALIASES",
    "EMBED_TOKENS",
    "IGNORED",
    "LM_HEAD",
    "TABLE",
    "Destination",
    "PlannedTensor",
    "Row",
    "Rows",
    "canonical_name",
    "is_ignored",
    "plan",
]


class Destination(Enum):
    """The file that a tensor goes to."""

    TEXT = "text"
    MMPROJ = "mmproj"


class Rows(Enum):
    """Which transform rearranges the rows."""

    KEEP = "keep"
    ROPE_Q = "rope_q"
    ROPE_K = "rope_k"
    PAD_VOCABULARY = "pad_vocabulary"
    """The rows behind vocab_size copy the row of a token that is never sampled."""
    IMAGE_TOKEN = "image_token"
    """The image token's row alone, as a vector."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `shape` is the GGUF tensor's (NumPy order), in the words of `dimensions`."""

    hf: str
    file: Destination
    gguf: str
    shape: tuple[str | int, ...]
    role: Role
    rows: Rows
    hf_shape: tuple[str | int, ...]
    """The source's shape."""

    @property
    def kind(self) -> str:
        """The kind of layer that it stands in: self, cross, local or global; empty outside of layers."""
        found = _KIND.search(self.gguf)
        return found[1] if found else ""


_KIND = re.compile(r"{(\w+)}")

ALIASES = (
    # transformers 5 saves         the Hub's files, canonical here
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
"""Prefixes of the other name layout."""

IGNORED = (re.compile(r"language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(original_)?inv_freq"),)
"""Tensors that hold nothing but what config.json says."""

# Rows of both tables: HF name, GGUF name, shape, role and, where rows move, how.
_SELF = "language_model.model.layers.{self}."
_CROSS = "language_model.model.layers.{cross}."
_GLOBAL = "vision_model.global_transformer.layers.{global}."
_GPE = "vision_model.gated_positional_embedding."
_PRE = "vision_model.pre_tile_positional_embedding."
_POST = "vision_model.post_tile_positional_embedding."
_TEXT, _MMPROJ = Destination.TEXT, Destination.MMPROJ
EMBED_TOKENS, LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

_ROPE_Q, _ROPE_K, _PAD, _IMAGE = Rows.ROPE_Q, Rows.ROPE_K, Rows.PAD_VOCABULARY, Rows.IMAGE_TOKEN

# fmt: off
_TEXT_ROWS = (
    (EMBED_TOKENS,                              "token_embd.weight",             ("n_tok", "d"), Role.TOKEN_EMBD),
    (_SELF + "input_layernorm.weight",          "blk.{self}.attn_norm.weight",   ("d",),         Role.EXACT),
    (_SELF + "self_attn.q_proj.weight",         "blk.{self}.attn_q.weight",      ("d", "d"),     Role.ATTN_Q, _ROPE_Q),
    (_SELF + "self_attn.k_proj.weight",         "blk.{self}.attn_k.weight",      ("d_kv", "d"),  Role.ATTN_K, _ROPE_K),
    (_SELF + "self_attn.v_proj.weight",         "blk.{self}.attn_v.weight",      ("d_kv", "d"),  Role.ATTN_V),
    (_SELF + "self_attn.o_proj.weight",         "blk.{self}.attn_output.weight", ("d", "d"),     Role.ATTN_OUT),
    (_SELF + "post_attention_layernorm.weight", "blk.{self}.ffn_norm.weight",    ("d",),         Role.EXACT),
    (_SELF + "mlp.gate_proj.weight",            "blk.{self}.ffn_gate.weight",    ("d_ff", "d"),  Role.FFN_GATE),
    (_SELF + "mlp.up_proj.weight",              "blk.{self}.ffn_up.weight",      ("d_ff", "d"),  Role.FFN_UP),
    (_SELF + "mlp.down_proj.weight",            "blk.{self}.ffn_down.weight",    ("d", "d_ff"),  Role.FFN_DOWN),
    ("language_model.model.norm.weight",        "output_norm.weight",            ("d",),         Role.EXACT),
    (LM_HEAD,                                   "output.weight",                 ("n_tok", "d"), Role.OUTPUT, _PAD),
)
_MMPROJ_ROWS = (
    ("vision_model.class_embedding",        "v.class_embd",                     ("v",),                     Role.EXACT),
    ("vision_model.patch_embedding.weight", "v.patch_embd.weight",              ("v", 3, "p", "p"),         Role.TABLE),
    (_GPE + "embedding",                    "v.position_embd.weight",           ("n_pos", "v"),             Role.TABLE),
    (_GPE + "gate",                         "v.position_embd.gate",             (1,),                       Role.EXACT),
    (_GPE + "tile_embedding.weight",        "v.tile_position_embd.weight",      ("n_aspect", "v_tile_pos"), Role.TABLE),
    (_PRE + "embedding.weight",             "v.pre_tile_position_embd.weight",  ("n_aspect", "v_tiles"),    Role.TABLE),
    (_PRE + "gate",                         "v.pre_tile_position_embd.gate",    (1,),                       Role.EXACT),
    (_POST + "embedding.weight",            "v.post_tile_position_embd.weight", ("n_aspect", "v_tiles"),    Role.TABLE),
    (_POST + "gate",                        "v.post_tile_position_embd.gate",   (1,),                       Role.EXACT),
    ("vision_model.layernorm_pre.weight",   "v.pre_ln.weight",                  ("v",),                     Role.EXACT),
    ("vision_model.layernorm_pre.bias",     "v.pre_ln.bias",                    ("v",),                     Role.EXACT),
    ("vision_model.layernorm_post.weight",  "v.post_ln.weight",                 ("v",),                     Role.EXACT),
    ("vision_model.layernorm_post.bias",    "v.post_ln.bias",                   ("v",),                     Role.EXACT),
    # both stacks of the tower; <stack> and <blk> are (transformer.layers.{local}, blk.{local}) and
    # (global_transformer.layers.{global}, global.blk.{global})
    ("<stack>.input_layernorm.weight",          "v.<blk>.ln1.weight",      ("v",),        Role.EXACT),
    ("<stack>.input_layernorm.bias",            "v.<blk>.ln1.bias",        ("v",),        Role.EXACT),
    ("<stack>.self_attn.q_proj.weight",         "v.<blk>.attn_q.weight",   ("v", "v"),    Role.TOWER),
    ("<stack>.self_attn.k_proj.weight",         "v.<blk>.attn_k.weight",   ("v", "v"),    Role.TOWER),
    ("<stack>.self_attn.v_proj.weight",         "v.<blk>.attn_v.weight",   ("v", "v"),    Role.TOWER),
    ("<stack>.self_attn.o_proj.weight",         "v.<blk>.attn_out.weight", ("v", "v"),    Role.TOWER),
    ("<stack>.post_attention_layernorm.weight", "v.<blk>.ln2.weight",      ("v",),        Role.EXACT),
    ("<stack>.post_attention_layernorm.bias",   "v.<blk>.ln2.bias",        ("v",),        Role.EXACT),
    ("<stack>.mlp.fc1.weight",                  "v.<blk>.ffn_up.weight",   ("v_ff", "v"), Role.TOWER),
    ("<stack>.mlp.fc1.bias",                    "v.<blk>.ffn_up.bias",     ("v_ff",),     Role.EXACT),
    ("<stack>.mlp.fc2.weight",                  "v.<blk>.ffn_down.weight", ("v", "v_ff"), Role.TOWER),
    ("<stack>.mlp.fc2.bias",                    "v.<blk>.ffn_down.bias",   ("v",),        Role.EXACT),
    (_GLOBAL + "gate_attn",          "v.global.blk.{global}.gate_attn", (1,),           Role.EXACT),
    (_GLOBAL + "gate_ffn",           "v.global.blk.{global}.gate_ffn",  (1,),           Role.EXACT),
    ("multi_modal_projector.weight", "mm.0.weight",                     ("d", "v_out"), Role.TOWER),
    ("multi_modal_projector.bias",   "mm.0.bias",                       ("d",),         Role.EXACT),
    (EMBED_TOKENS,                   "mm.image_token_embd.weight",      ("d",),         Role.EXACT, _IMAGE),
    (_CROSS + "input_layernorm.weight",          "xattn.blk.{cross}.attn_norm.weight",   ("d",),        Role.EXACT),
    (_CROSS + "cross_attn.q_proj.weight",        "xattn.blk.{cross}.attn_q.weight",      ("d", "d"),    Role.ATTN_Q),
    (_CROSS + "cross_attn.k_proj.weight",        "xattn.blk.{cross}.attn_k.weight",      ("d_kv", "d"), Role.ATTN_K),
    (_CROSS + "cross_attn.v_proj.weight",        "xattn.blk.{cross}.attn_v.weight",      ("d_kv", "d"), Role.ATTN_V),
    (_CROSS + "cross_attn.o_proj.weight",        "xattn.blk.{cross}.attn_output.weight", ("d", "d"),    Role.ATTN_OUT),
    (_CROSS + "cross_attn.q_norm.weight",        "xattn.blk.{cross}.attn_q_norm.weight", ("d_head",),   Role.EXACT),
    (_CROSS + "cross_attn.k_norm.weight",        "xattn.blk.{cross}.attn_k_norm.weight", ("d_head",),   Role.EXACT),
    (_CROSS + "cross_attn_attn_gate",            "xattn.blk.{cross}.gate_attn",          (1,),          Role.EXACT),
    (_CROSS + "post_attention_layernorm.weight", "xattn.blk.{cross}.ffn_norm.weight",    ("d",),        Role.EXACT),
    (_CROSS + "mlp.gate_proj.weight",            "xattn.blk.{cross}.ffn_gate.weight",    ("d_ff", "d"), Role.FFN_GATE),
    (_CROSS + "mlp.up_proj.weight",              "xattn.blk.{cross}.ffn_up.weight",      ("d_ff", "d"), Role.FFN_UP),
    (_CROSS + "mlp.down_proj.weight",            "xattn.blk.{cross}.ffn_down.weight",    ("d", "d_ff"), Role.FFN_DOWN),
    (_CROSS + "cross_attn_mlp_gate",             "xattn.blk.{cross}.gate_ffn",           (1,),          Role.EXACT),
)
# fmt: on

_STACKS = (
    ("vision_model.transformer.layers.{local}", "blk.{local}"),
    ("vision_model.global_transformer.layers.{global}", "global.blk.{global}"),
)
_SOURCE_SHAPES: dict[Rows, tuple[str | int, ...]] = {
    Rows.PAD_VOCABULARY: ("vocab", "d"),
    Rows.IMAGE_TOKEN: ("n_tok", "d"),
}


def _rows(file: Destination, lines: tuple[Any, ...]) -> Iterator[Row]:
    for hf, gguf, shape, role, *rest in lines:
        rows = rest[0] if rest else Rows.KEEP
        for stack, blk in _STACKS if hf.startswith("<stack>") else (("", ""),):
            name = hf.replace("<stack>", stack), gguf.replace("<blk>", blk)
            yield Row(name[0], file, name[1], shape, role, rows, _SOURCE_SHAPES.get(rows, shape))


TABLE: tuple[Row, ...] = (*_rows(_TEXT, _TEXT_ROWS), *_rows(_MMPROJ, _MMPROJ_ROWS))


@dataclass(frozen=True)
class PlannedTensor:
    """A GGUF tensor to be written, and where its rows come from."""

    file: Destination
    name: str
    shape: tuple[int, ...]
    """NumPy order; a vector counts as one row."""
    role: Role
    layer: Layer
    hf: str
    """Canonical name of the source; empty for a tensor computed from config.json."""
    hf_shape: tuple[int, ...]
    index: transforms.Index
    """Row i is row index[i] of the source."""
    values: NDArray[np.float32] | None = None
    """The tensor itself, where it is computed from config.json."""


def canonical_name(name: str) -> str:
    """The Hub's name of a tensor that either layout names, wrapped or not (see `prefixes`)."""
    name = unwrapped(name)
    for prefix, canonical in ALIASES:
        if name.startswith(prefix):
            return canonical + name[len(prefix) :]
    return name


def is_ignored(name: str) -> bool:
    """Whether a tensor of this canonical name is left out on purpose."""
    return any(pattern.fullmatch(name) for pattern in IGNORED)


def dimensions(config: MllamaConfig) -> dict[str, int]:
    """The words in which the table states shapes."""
    t, v = config.text, config.vision
    tiles = v.max_num_tiles
    return {
        "n_tok": t.n_embedding_rows,
        "vocab": t.vocab_size,
        "d": t.hidden_size,
        "d_kv": t.num_key_value_heads * t.head_dim,
        "d_head": t.head_dim,
        "d_ff": t.intermediate_size,
        "v": v.hidden_size,
        "v_ff": v.intermediate_size,
        "v_out": v.vision_output_dim,
        "p": v.patch_size,
        "n_pos": v.n_positions,
        "n_aspect": len(v.supported_aspect_ratios) + 1,
        "v_tiles": tiles * v.hidden_size,
        "v_tile_pos": tiles * v.n_positions * v.hidden_size,
    }


def plan(config: MllamaConfig, filler_token: int) -> list[PlannedTensor]:
    """Every tensor of both files, in the order in which they are written.

    Args:
        config: the model's dimensions.
        filler_token: the token whose lm_head row stands behind vocab_size too.
    """
    dims = dimensions(config)
    planned = [
        _resolve(row, config, dims, place, filler_token)
        for rows in _by_layer(TABLE)
        for place in _places(rows[0], config)
        for row in rows
    ]
    factors = transforms.rope_factors(config.text)
    if factors is not None:
        index = transforms.identity(1)
        planned.append(
            PlannedTensor(_TEXT, "rope_freqs.weight", factors.shape, Role.EXACT, Layer(), "", (), index, factors)
        )
    return planned


def _by_layer(table: tuple[Row, ...]) -> list[list[Row]]:
    """Neighbouring rows of one kind of layer, together: so a layer's tensors stand next to each other in the file."""
    return [
        list(rows)
        for _, rows in groupby(sorted(table, key=lambda r: (r.file.value != "text", r.kind)), lambda r: r.kind)
    ]


@dataclass(frozen=True)
class _Place:
    """One of the layers that a row stands for; `kind` is empty for a tensor outside of layers."""

    kind: str
    layer: Layer
    il_hf: int
    il_gguf: int


def _places(row: Row, config: MllamaConfig) -> Iterator[_Place]:
    t, v = config.text, config.vision
    hf_indices = {
        "self": t.self_attention_layers,
        "cross": t.cross_attention_layers,
        "local": range(v.num_hidden_layers),
        "global": range(v.num_global_layers),
    }
    kind = row.kind
    if not kind:
        yield _Place(kind, Layer(), 0, 0)
        return
    n_gqa = t.num_attention_heads // t.num_key_value_heads
    is_70b = len(t.self_attention_layers) == 80 and n_gqa > 1
    for i, il_hf in enumerate(hf_indices[kind]):
        layer = Layer(i, len(hf_indices[kind]), is_70b=is_70b, n_gqa=n_gqa)
        yield _Place(kind, layer, il_hf, i if kind == "self" else il_hf)


def _resolve(row: Row, config: MllamaConfig, dims: dict[str, int], place: _Place, filler_token: int) -> PlannedTensor:
    hf, hf_shape = row.hf, row.hf_shape
    if hf == LM_HEAD and config.text.tie_word_embeddings:
        hf, hf_shape = EMBED_TOKENS, ("n_tok", "d")
    shape = tuple(dims[x] if isinstance(x, str) else x for x in row.shape)
    n_rows = shape[0] if len(shape) > 1 else 1
    t = config.text
    index = {
        Rows.KEEP: lambda: transforms.identity(n_rows),
        Rows.ROPE_Q: lambda: transforms.permute_rope(n_rows, t.num_attention_heads),
        Rows.ROPE_K: lambda: transforms.permute_rope(n_rows, t.num_key_value_heads),
        Rows.PAD_VOCABULARY: lambda: transforms.pad_rows(t.vocab_size, n_rows, filler_token),
        Rows.IMAGE_TOKEN: lambda: transforms.single_row(config.image_token_index),
    }[row.rows]()
    return PlannedTensor(
        file=row.file,
        name=row.gguf.format(**{place.kind: place.il_gguf}),
        shape=shape,
        role=row.role,
        layer=place.layer,
        hf=hf.format(**{place.kind: place.il_hf}),
        hf_shape=tuple(dims[x] if isinstance(x, str) else x for x in hf_shape),
        index=index,
    )
