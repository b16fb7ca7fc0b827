"""Which GGML type each tensor gets: llama.cpp's own mixtures, as data and pure functions.

Mirrors `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp, so that our text
files equal, byte for byte, what llama.cpp's quantizer makes of our F32 file (a test holds them together, type by type).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from pyvllama.errors import ConfigError
from pyvllama.gguf_file import GGML_TYPES

__all__ = [
    "MMPROJ_TYPES",
    "TEXT_TYPES",
    "FileType",
    "Layer",
    "Role",
    "file_type",
    "fit_type",
    "matrix_type",
    "needs_importance",
]


class Role(Enum):
    """What a tensor is, as far as its type depends on it."""

    EXACT = "exact"
    """Vectors, norms, biases, gates: always F32."""
    TABLE = "table"
    """Lookup tables and the patch convolution: the source's own type, or F32 in an F32 file."""
    TOWER = "tower"
    """Matrices of the vision tower and the projector."""
    TOKEN_EMBD = "token_embd"
    OUTPUT = "output"
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_OUT = "attn_output"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"


@dataclass(frozen=True)
class Layer:
    """Where a tensor stands: the `index`-th of `count` layers of its kind (0 of 1 outside of layers)."""

    index: int = 0
    count: int = 1
    is_70b: bool = False
    """llama.cpp gives attn_v of an 80-layer model with grouped heads (the 90B's text half) more bits."""
    n_gqa: int = 1
    """Query heads for each head of keys and values: from 4 on, attn_v is small and gets more bits."""
    has_importance: bool = False
    """Whether the file is made with an importance matrix: some mixtures then spare bits."""


Condition = Callable[[Layer], bool]


def _always(_: Layer) -> bool:
    return True


def _use_more_bits(layer: Layer) -> bool:
    """The first and the last eighth of the layers, and every third one between them."""
    i, n = layer.index, layer.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _first_eighth(layer: Layer) -> bool:
    return layer.index < layer.count // 8


def _middle(layer: Layer) -> bool:
    return layer.count // 8 <= layer.index < 7 * layer.count // 8


def _grouped(layer: Layer) -> bool:
    return layer.n_gqa >= 4


def _first_eighth_blind(layer: Layer) -> bool:
    return _first_eighth(layer) and not layer.has_importance


def _first_eighth_informed(layer: Layer) -> bool:
    return _first_eighth(layer) and layer.has_importance


def _blind(layer: Layer) -> bool:
    return not layer.has_importance


Bumps = dict[Role, tuple[tuple[Condition, str], ...]]


@dataclass(frozen=True)
class FileType:
    """A row of the table: a name that users write, llama.cpp's number of it, and the types of its matrices."""

    name: str
    number: int
    """llama_ftype, the value of `general.file_type`."""
    base: str
    """ggml type of every matrix without a bump."""
    bumps: Bumps = field(default_factory=dict)
    """Role -> (condition, type) in order; the first condition that holds decides."""


def _table(*rows: FileType) -> dict[str, FileType]:
    return {row.name: row for row in rows}


def _mixture(name: str, number: int, base: str, **bumps: str | tuple[tuple[Condition, str], ...]) -> FileType:
    """A row; a bump is a type, or (condition, type) pairs. Every mixture has its output in Q6_K unless it says else."""
    roles: Bumps = {Role.OUTPUT: ((_always, "q6_K"),)}
    for role, bump in bumps.items():
        roles[Role[role]] = ((_always, bump),) if isinstance(bump, str) else bump
    return FileType(name, number, base, roles)


def _iq2(name: str, number: int, base: str, *, richer: bool, attn_out: str | None) -> FileType:
    """The mixtures of one and two bits: `richer` ones spend IQ3_S where the others spend Q2_K."""
    more = "iq3_s" if richer else "q2_K"
    bumps: dict[str, str | tuple[tuple[Condition, str], ...]] = {
        "OUTPUT": "q5_K",
        "TOKEN_EMBD": more,
        "ATTN_V": ((_grouped, "q4_K"), (_always, more)),
        "FFN_DOWN": ((_first_eighth, more),),
    }
    if attn_out:
        bumps["ATTN_OUT"] = attn_out
    return _mixture(name, number, base, **bumps)


TEXT_TYPES = _table(
    FileType("f32", 0, "f32"),
    FileType("f16", 1, "f16"),
    FileType("bf16", 32, "bf16"),
    FileType("q8_0", 7, "q8_0"),
    _mixture("q6_k", 18, "q6_K"),
    _mixture("q5_k_m", 17, "q5_K", ATTN_V=((_use_more_bits, "q6_K"),), FFN_DOWN=((_use_more_bits, "q6_K"),)),
    _mixture("q5_k_s", 16, "q5_K"),
    _mixture("q5_1", 9, "q5_1"),
    _mixture("q5_0", 8, "q5_0", FFN_DOWN=((_first_eighth_informed, "q5_1"),)),
    _mixture("q4_k_m", 15, "q4_K", ATTN_V=((_use_more_bits, "q6_K"),), FFN_DOWN=((_use_more_bits, "q6_K"),)),
    _mixture(
        "q4_k_s", 14, "q4_K", ATTN_V=((lambda layer: layer.index < 4, "q5_K"),), FFN_DOWN=((_first_eighth, "q5_K"),)
    ),
    _mixture("q4_1", 3, "q4_1"),
    _mixture("q4_0", 2, "q4_0", FFN_DOWN=((_first_eighth_informed, "q4_1"),)),
    _mixture("iq4_nl", 25, "iq4_nl", ATTN_V=((_grouped, "q5_K"),), FFN_DOWN=((_first_eighth_blind, "q5_K"),)),
    _mixture("iq4_xs", 30, "iq4_xs", ATTN_V=((_grouped, "q5_K"),), FFN_DOWN=((_first_eighth_blind, "q5_K"),)),
    _mixture("q3_k_l", 13, "q3_K", ATTN_V="q5_K", FFN_DOWN="q5_K", ATTN_OUT="q5_K"),
    _mixture(
        "q3_k_m",
        12,
        "q3_K",
        ATTN_V=((lambda layer: layer.index < 2, "q5_K"), (_always, "q4_K")),
        FFN_DOWN=((lambda layer: layer.index < layer.count // 16, "q5_K"), (_always, "q4_K")),
        ATTN_OUT="q4_K",
    ),
    _mixture("q3_k_s", 11, "q3_K"),
    _mixture("iq3_m", 27, "iq3_s", ATTN_V="q4_K", FFN_DOWN=((_first_eighth, "q4_K"),), ATTN_OUT="q4_K"),
    _mixture("iq3_s", 26, "iq3_s", ATTN_V=((_grouped, "q4_K"),)),
    _mixture(
        "iq3_xs",
        22,
        "iq3_s",
        ATTN_V=((_grouped, "q4_K"),),
        ATTN_K="iq3_xxs",
        ATTN_Q="iq3_xxs",
        FFN_GATE=((_middle, "iq3_xxs"),),
        FFN_UP=((_middle, "iq3_xxs"),),
    ),
    _mixture(
        "iq3_xxs",
        23,
        "iq3_xxs",
        OUTPUT="q5_K",
        TOKEN_EMBD="iq3_s",
        ATTN_V=((_grouped, "q4_K"), (_blind, "iq3_s")),
        ATTN_K="iq2_s",
        ATTN_Q="iq2_s",
        FFN_DOWN=((_first_eighth_blind, "q4_K"), (_blind, "q3_K")),
        ATTN_OUT="iq3_s",
    ),
    _mixture("q2_k", 10, "q2_K", ATTN_V=((_grouped, "q4_K"), (_always, "q3_K")), FFN_DOWN="q3_K", ATTN_OUT="q3_K"),
    _mixture("q2_k_s", 21, "q2_K", ATTN_V=((_grouped, "q4_K"),), FFN_DOWN=((_first_eighth, "q4_K"),)),
    _iq2("iq2_m", 29, "iq2_s", richer=True, attn_out="iq3_s"),
    _iq2("iq2_s", 28, "iq2_xs", richer=True, attn_out="iq3_s"),
    _iq2("iq2_xs", 20, "iq2_xs", richer=False, attn_out=None),
    _iq2("iq2_xxs", 19, "iq2_xxs", richer=False, attn_out=None),
    _iq2("iq1_m", 31, "iq1_m", richer=False, attn_out="iq2_xxs"),
    _iq2("iq1_s", 24, "iq1_s", richer=False, attn_out="iq2_xxs"),
)
"""File types of text models and of the cross-attention layers, larger ones first: all that llama.cpp has for them."""

_TOO_SMALL_FOR_70B_RULE = frozenset({"iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"})
"""Mixtures that llama.cpp decides before it asks whether the model is a 70B."""

MMPROJ_TYPES = _table(
    FileType("f32", 0, "f32"),
    FileType("f16", 1, "f16"),
    FileType("bf16", 32, "bf16"),
    FileType("q8_0", 7, "q8_0"),
    # llama.cpp has no number for "this K type alone"; that of the S mixture is the nearest
    FileType("q6_k", 18, "q6_K"),
    FileType("q5_k", 16, "q5_K"),
    FileType("q5_1", 9, "q5_1"),
    FileType("q5_0", 8, "q5_0"),
    FileType("q4_k", 14, "q4_K"),
    FileType("q4_1", 3, "q4_1"),
    FileType("q4_0", 2, "q4_0"),
    FileType("iq4_nl", 25, "iq4_nl"),
    FileType("iq4_xs", 30, "iq4_xs"),
)
"""File types of the vision tower and the projector: one type for all matrices."""

_SMALLER_BLOCKS = {
    "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl",
    "iq2_xxs": "iq4_nl",
    "iq2_xs": "iq4_nl",
    "iq2_s": "iq4_nl",
    "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
    "q2_K": "q4_0",
    "q3_K": "q4_0",
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}
"""What takes a type's place in rows that are no whole number of its blocks of 256."""

_NEED_IMPORTANCE = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})


def file_type(name: str, table: dict[str, FileType], option: str) -> FileType:
    """Look a user's type name up, in any case.

    Raises:
        ConfigError: there is no such type; the message lists those that there are.
    """
    if (found := table.get(name.lower())) is None:
        raise ConfigError(f"{option} = {name!r} is not supported; supported are {', '.join(table)}")
    return found


def matrix_type(chosen: FileType, role: Role, layer: Layer, n_per_row: int) -> str:
    """The ggml type of a matrix in a file of the chosen type.

    Args:
        chosen: a row of TEXT_TYPES or MMPROJ_TYPES.
        role: what the matrix is.
        layer: where it stands.
        n_per_row: its row length in elements.
    """
    if role is Role.OUTPUT and n_per_row % GGML_TYPES[chosen.base].block_elements:
        return fit_type("q8_0", n_per_row)
    found = next((bumped for holds, bumped in chosen.bumps.get(role, ()) if holds(layer)), chosen.base)
    if role is Role.ATTN_V and layer.is_70b and chosen.name not in _TOO_SMALL_FOR_70B_RULE:
        found = "q5_K" if found in ("q3_K", "q4_K") else found
    return fit_type(found, n_per_row)


def fit_type(ggml_type: str, n_per_row: int) -> str:
    """`ggml_type`, or what llama.cpp puts in its place if rows are no whole number of its blocks."""
    if n_per_row % GGML_TYPES[ggml_type].block_elements == 0:
        return ggml_type
    smaller = _SMALLER_BLOCKS.get(ggml_type, ggml_type)
    return smaller if n_per_row % GGML_TYPES[smaller].block_elements == 0 else "f16"


def needs_importance(chosen: FileType, role: Role, ggml_type: str) -> bool:
    """Whether a tensor of that type is garbage without an importance matrix.

    Embedding and output are made without one in any mixture.
    """
    if role in (Role.TOKEN_EMBD, Role.OUTPUT):
        return False
    return ggml_type in _NEED_IMPORTANCE or (ggml_type == "q2_K" and chosen.name == "q2_k_s")
