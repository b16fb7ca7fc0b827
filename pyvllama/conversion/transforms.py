"""How a tensor's rows are rearranged on the way from Hugging Face's layout to GGUF's.

Each transform of this format is a gather of whole rows: row i of the result is row `index[i]` of the source, bit for
bit. So a transform is nothing but that index, it can be applied to any slice of rows, and it has an exact inverse. A
row is everything behind a tensor's first dimension; a vector or a scalar gate is one row.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import TextConfig

__all__ = ["Index", "identity", "invert", "pad_rows", "permute_rope", "rope_factors", "single_row"]

Index = NDArray[np.int64]


def identity(n_rows: int) -> Index:
    """Every row where it was."""
    return np.arange(n_rows, dtype=np.int64)


def permute_rope(n_rows: int, n_head: int) -> Index:
    """Rows of a q or k projection for llama.cpp's rotary embedding of the `llama` architecture.

    HF rotates the pair (i, i + head_dim / 2) of a head, llama.cpp the pair (2i, 2i + 1). (Cross-attention has no
    rotary embedding: its rows stay.)

    Args:
        n_rows: n_head * head_dim.
        n_head: heads of this projection (key/value heads for k).
    """
    return identity(n_rows).reshape(n_head, 2, n_rows // n_head // 2).swapaxes(1, 2).reshape(n_rows)


def pad_rows(n_rows: int, n_padded: int, filler: int) -> Index:
    """All rows, then row `filler` again up to `n_padded` rows."""
    return np.concatenate([identity(n_rows), np.full(n_padded - n_rows, filler, dtype=np.int64)])


def single_row(row: int) -> Index:
    """One row alone."""
    return np.array([row], dtype=np.int64)


def invert(index: Index, n_rows: int) -> Index:
    """The gather that undoes a gather: `source[index][invert(index, len(source))] == source`.

    Args:
        index: the gather that was applied.
        n_rows: rows of the source.

    Raises:
        ValueError: the gather drops rows, so there is nothing that undoes it.
    """
    inverse = np.full(n_rows, -1, dtype=np.int64)
    inverse[index[::-1]] = np.arange(len(index), dtype=np.int64)[::-1]  # of several copies the first one
    if (inverse < 0).any():
        raise ValueError(f"the gather drops {int((inverse < 0).sum())} of {n_rows} rows")
    return inverse


def rope_factors(text: TextConfig) -> NDArray[np.float32] | None:
    """`rope_freqs.weight`: what each rotary frequency is divided by, float32 [head_dim / 2]; None without scaling.

    Mirrors `_compute_llama3_parameters` of transformers (modeling_rope_utils.py).
    """
    rope = text.rope_scaling
    if rope is None:
        return None
    exponents = np.arange(0, text.head_dim, 2, dtype=np.float32) / np.float32(text.head_dim)
    frequencies = (1.0 / text.rope_theta**exponents).astype(np.float32)
    original = rope.original_max_position_embeddings
    factors = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < original / rope.high_freq_factor:
            factors.append(1.0)
        elif wavelength > original / rope.low_freq_factor:
            factors.append(rope.factor)
        else:
            smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            factors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(factors, dtype=np.float32)
