"""From the rotary factors of a text GGUF back to the scaling that config.json names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import Llama3Rope, TextConfig
from pyvllama.conversion.metadata import shortest_decimal
from pyvllama.conversion.transforms import rope_factors

__all__ = ["find_rope_scaling"]

_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0
_FACTORS = (8.0, 32.0)
"""Llama 3.1 and 3.2 Vision; Llama 3.2 of 1B and 3B."""
_ORIGINAL_LENGTHS = (8192, *(1 << i for i in range(4, 21)))
_TOLERANCE = 1e-5
"""Between one program's float32 arithmetic and another's; other parameters differ by far more."""


def find_rope_scaling(text: TextConfig, factors: NDArray[np.float32]) -> Llama3Rope | None:
    """The parameters that `rope_freqs.weight` was computed with.

    The file stores the factors alone. All of Meta's models scale from a high frequency factor of 4 to a low one of 1;
    the factor is what the longest waves are divided by, and the length is tried. Of several that give the same factors
    it does not matter which.

    Args:
        text: head size and theta; its own `rope_scaling` is not looked at.
        factors: float32 [head_dim / 2].

    Returns:
        The parameters, or None where none of Meta's form give these factors.
    """
    if factors.shape != (text.head_dim // 2,) or not (np.isfinite(factors) & (factors > 0)).all():
        return None
    candidates = [
        Llama3Rope(factor, _LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, length)
        for length in _ORIGINAL_LENGTHS
        for factor in dict.fromkeys((*_FACTORS, shortest_decimal(factors.max())))
    ]
    errors = [_error(replace(text, rope_scaling=candidate), factors) for candidate in candidates]
    for limit in (0.0, _TOLERANCE):
        for candidate, error in zip(candidates, errors, strict=True):
            if error <= limit:
                return candidate
    return None


def _error(text: TextConfig, factors: NDArray[np.float32]) -> float:
    computed = rope_factors(text)
    return np.inf if computed is None else float(np.abs(computed / factors - 1).max())
