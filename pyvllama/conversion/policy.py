"""Which GGML type each tensor gets: llama.cpp's own mixtures, as data and pure functions.

Mirrors `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp, so that our text
files equal, byte for byte, what llama.cpp's quantizer makes of our F32 file (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from pyvllama.errors import ConfigError
from pyvllama.gguf_file import GGML_TYPES

__all__ = ["MMPROJ_TYPES", "TEXT_TYPES", "FileType", "Layer", "Role", "file_type", "fit_type", "matrix_type"]


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


Bump = Callable[[Layer], bool]


def _always(_: Layer) -> bool:
    return True


def _use_more_bits(layer: Layer) -> bool:
    """The first and the last eighth of the layers, and every third one between them."""
    i, n = layer.index, layer.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True)
class FileType:
    """A row of the table: a name that users write, llama.cpp's number of it, and the types of its matrices."""

    name: str
    number: int
    """llama_ftype, the value of `general.file_type`."""
    base: str
    """ggml type of every matrix without a bump."""
    bumps: dict[Role, tuple[tuple[Bump, str], ...]] = field(default_factory=dict)
    """Role -> (condition, type) in order; the first condition that holds decides."""


def _table(*rows: FileType) -> dict[str, FileType]:
    return {row.name: row for row in rows}


TEXT_TYPES = _table(
    FileType("f32", 0, "f32"),
    FileType("f16", 1, "f16"),
    FileType("bf16", 32, "bf16"),
    FileType("q8_0", 7, "q8_0"),
    FileType(
        "q4_k_m",
        15,
        "q4_K",
        {
            Role.OUTPUT: ((_always, "q6_K"),),
            Role.ATTN_V: ((_use_more_bits, "q6_K"), (lambda layer: layer.is_70b, "q5_K")),
            Role.FFN_DOWN: ((_use_more_bits, "q6_K"),),
        },
    ),
)
"""File types of text models and of the cross-attention layers."""

MMPROJ_TYPES = _table(
    FileType("f32", 0, "f32"),
    FileType("f16", 1, "f16"),
    FileType("bf16", 32, "bf16"),
    FileType("q8_0", 7, "q8_0"),
    FileType("q4_k", 14, "q4_K"),  # llama.cpp has no number for "Q4_K alone"; MOSTLY_Q4_K_S is the nearest
)
"""File types of the vision tower and the projector: one type for all matrices."""

_SMALLER_BLOCKS = {
    "q2_K": "q4_0",
    "q3_K": "q4_0",
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}
"""What takes a type's place in rows that are no whole number of its blocks of 256."""


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
    for holds, bumped in chosen.bumps.get(role, ()):
        if holds(layer):
            return fit_type(bumped, n_per_row)
    return fit_type(chosen.base, n_per_row)


def fit_type(ggml_type: str, n_per_row: int) -> str:
    """`ggml_type`, or what llama.cpp puts in its place if rows are no whole number of its blocks."""
    if n_per_row % GGML_TYPES[ggml_type].block_elements == 0:
        return ggml_type
    smaller = _SMALLER_BLOCKS.get(ggml_type, ggml_type)
    return smaller if n_per_row % GGML_TYPES[smaller].block_elements == 0 else "f16"
