"""Weights that bitsandbytes quantized, as transformers saves them: 4 bits (nf4, fp4) and 8 bits (LLM.int8).

4 bits: `X.weight` holds two values a byte, the high half first, row after row; each block of `blocksize` values has a
float32 scale in `X.weight.absmax`. With double quantization absmax is bytes itself: indices into
`X.weight.nested_quant_map`, times a scale for each `nested_blocksize` of them in `nested_absmax`, plus `nested_offset`.
The rest is a JSON text, stored as bytes, in `X.weight.quant_state.bitsandbytes__nf4` (or `__fp4`).
8 bits: `X.weight` is int8 [n_out, n_in], `X.SCB` holds each row's largest magnitude.

The values are those of bitsandbytes' own `dequantize_4bit` and `int8_vectorwise_dequant`: computed in float32, 4 bits
then rounded to the dtype that the weight had before (`dtype` of the quant state), 8 bits left in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.source_tensor import SourceTensor, Tensor, computed_rows
from pyvllama.conversion.text_files import json_object
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError

__all__ = ["CODES", "FourBit", "Int8", "dequantized"]

# Both tables: bitsandbytes/functional.py, get_4bit_type (nf4 from the paper on QLoRA, arXiv:2305.14314, appendix E).
# fmt: off
CODES: dict[str, NDArray[np.float32]] = {
    "nf4": np.array([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ], np.float32),
    # sign, two bits of exponent, one of mantissa; in units of its largest value, 12
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32)
    / np.float32(12),
}
# fmt: on
"""Value of each 4-bit code, for a scale of 1."""

_STATE = re.compile(r"(.+\.weight)\.quant_state\.bitsandbytes__(nf4|fp4)")
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MAX_STATE_BYTES = 1 << 16
_MAX_OFFSET = 3e38  # of float32
_INT8_STEP = np.float32(7.874015718698502e-3)
"""1 / 127, as bitsandbytes spells it."""


@dataclass(frozen=True)
class FourBit(Tensor):
    """A matrix of 4-bit codes with a scale for each block of values, which may reach over the ends of rows."""

    packed: SourceTensor
    """u8 [n_bytes, 1]."""
    absmax: SourceTensor
    """f32, or u8 where it is quantized itself: [n_blocks, 1]."""
    code: str
    """'nf4' or 'fp4'."""
    block_size: int
    nested: _Nested | None

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`; in the dtype that the weight had before it was quantized."""
        return computed_rows(self._gathered, index, self.n_per_row, self.type)

    def _gathered(self, index: Index) -> NDArray[np.float32]:
        first, last = int(index.min()), int(index.max())
        if last - first < 2 * len(index) + 64:
            values = self._values(first, last - first + 1)
            return values if (np.diff(index) == 1).all() else values[index - first]
        return np.concatenate([self._values(int(i), 1) for i in index])

    def _values(self, first_row: int, count: int) -> NDArray[np.float32]:
        """Rows that follow one another, in float32."""
        first, n = first_row * self.n_per_row, self.block_size
        last = first + count * self.n_per_row  # elements of the matrix, seen as one vector
        data = self.packed.read(first // 2, (last + 1) // 2 - first // 2).reshape(-1)
        codes = np.stack([data >> 4, data & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        values: NDArray[np.float32] = CODES[self.code][codes]
        scales = self._scales(first // n, (last - 1) // n + 1)
        if first % n == 0 and last % n == 0:
            values = values.reshape(-1, n) * scales[:, None]
        else:
            values = values * np.repeat(scales, n)[first % n :][: last - first]
        rows: NDArray[np.float32] = values.reshape(count, self.n_per_row)
        return rows

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        """Of the blocks first to last - 1."""
        stored = self.absmax.read(first, last - first).reshape(-1)
        if self.nested is None:
            return stored.astype(np.float32, copy=False)
        size = self.nested.block_size
        groups = self.nested.absmax.read(first // size, (last - 1) // size + 1 - first // size).reshape(-1)
        scales: NDArray[np.float32] = (
            _row(self.nested.table)[stored] * groups[np.arange(first, last) // size - first // size]
        )
        return scales + np.float32(self.nested.offset)


@dataclass(frozen=True)
class _Nested:
    """How the scales are quantized: by tables of 256 values, in blocks."""

    table: SourceTensor
    """f32 [256]."""
    absmax: SourceTensor
    """f32 [n_groups, 1]."""
    block_size: int
    offset: float


@dataclass(frozen=True)
class Int8(Tensor):
    """A matrix of int8 with a scale for each row."""

    values: SourceTensor
    """i8 [n_out, n_in]."""
    scales: SourceTensor
    """f32 [n_out, 1]."""

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`; in float32."""
        scaled: NDArray[np.float32] = self.values.rows(index).astype(np.float32) * self.scales.rows(index)
        return scaled * _INT8_STEP


def dequantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with what bitsandbytes quantized in place of its parts. No values are read but the quant states.

    Args:
        tensors: name -> tensor; names may be of either layout.

    Raises:
        CheckpointError: parts are missing, or do not fit together.
    """
    result = dict(tensors)
    for name in tensors:
        if m := _STATE.fullmatch(name):
            parts = {
                part: result.pop(full)
                for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
                if (full := f"{m[1]}.{part}") in result
            }
            result[m[1]] = _four_bit(m[1], m[2], result.pop(name), result.get(m[1]), parts)
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            layout = result.pop(f"{module}.weight_format", None)
            result[f"{module}.weight"] = _int8(result.pop(name), result.get(f"{module}.weight"), layout)
    return result


def _row(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.rows(np.zeros(1, np.int64)).reshape(-1)
    return values


def _four_bit(name: str, code: str, state: Tensor, packed: Tensor | None, parts: Mapping[str, Tensor]) -> FourBit:
    where = f"{state.path}: {state.name}"
    keys = _state(state, where)
    if packed is None or "absmax" not in parts:
        raise CheckpointError(f"{where} is there, but {name if packed is None else name + '.absmax'} is not")
    shape, block_size, kind = keys.get("shape"), keys.get("blocksize"), _TYPES.get(str(keys.get("dtype")))
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and n > 0 for n in shape)
        or type(block_size) is not int
        or block_size not in _BLOCK_SIZES
        or kind is None
        or keys.get("quant_type") != code
    ):
        raise CheckpointError(f"{where} is damaged, or of an unknown kind: {keys!r:.300}")
    n = math.prod(shape)
    n_blocks = -(-n // block_size)
    nested = None
    if "nested_absmax" in parts:
        nested = _nested(parts, keys, n_blocks, where)
    absmax = _vector(parts["absmax"], "f32" if nested is None else "u8", n_blocks)
    table = parts.get("quant_map")
    if table is not None and not np.allclose(_row(_vector(table, "f32", 16, as_row=True)), CODES[code], atol=1e-4):
        raise CheckpointError(f"{where}: its quant_map is not that of {code}")
    data = _bytes(packed, -(-n // 2))
    return FourBit(packed.name, packed.path, kind, tuple(shape), data, absmax, code, block_size, nested)


def _state(state: Tensor, where: str) -> dict[str, Any]:
    if state.type != "u8" or math.prod(state.shape) > _MAX_STATE_BYTES:
        raise CheckpointError(f"{where} is of type {state.type} {list(state.shape)}, but a quant state is a short text")
    return json_object(where, _row(replace(state, shape=state.shape or (1,))).tobytes())


def _nested(parts: Mapping[str, Tensor], keys: Mapping[str, Any], n_blocks: int, where: str) -> _Nested:
    size, offset = keys.get("nested_blocksize"), keys.get("nested_offset")
    if (
        type(size) is not int
        or size <= 0
        or not isinstance(offset, int | float)
        or not abs(offset) < _MAX_OFFSET  # NaN is not, either
        or keys.get("nested_dtype") != "float32"
        or "nested_quant_map" not in parts
    ):
        raise CheckpointError(f"{where} is damaged, or of an unknown kind: {keys!r:.300}")
    table = _vector(parts["nested_quant_map"], "f32", 256, as_row=True)
    return _Nested(table, _vector(parts["nested_absmax"], "f32", -(-n_blocks // size)), size, float(offset))


def _int8(scales: Tensor, values: Tensor | None, layout: Tensor | None) -> Int8:
    where = f"{scales.path}: {scales.name}"
    if not isinstance(values, SourceTensor) or values.type != "i8" or len(values.shape) != 2:
        raise CheckpointError(f"{where} is there, but no int8 weight of two dimensions beside it")
    if layout is not None and _row(layout).any():
        raise CheckpointError(
            f"{layout.path}: {layout.name} says that the weight is arranged for one kind of GPU; "
            "load the model with a newer bitsandbytes and save it again"
        )
    return Int8(values.name, values.path, "f32", values.shape, values, _vector(scales, "f32", values.shape[0]))


def _vector(tensor: Tensor, kind: str, n: int, as_row: bool = False) -> SourceTensor:
    """A vector of so many elements, as rows of one element or as one row."""
    if tensor.type != kind or math.prod(tensor.shape) != n or not isinstance(tensor, SourceTensor):
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is of type {tensor.type} {list(tensor.shape)}; expected {n} values of {kind}"
        )
    return replace(tensor, shape=(n,) if as_row else (n, 1))


def _bytes(packed: Tensor, n: int) -> SourceTensor:
    """The packed codes as bytes: they may be stored as any type (`bnb_4bit_quant_storage`)."""
    item_bytes = {"u8": 1, "i8": 1, "f16": 2, "bf16": 2, "f32": 4}[packed.type]
    if not isinstance(packed, SourceTensor) or math.prod(packed.shape) * item_bytes != n:
        raise CheckpointError(
            f"{packed.path}: {packed.name} of type {packed.type} {list(packed.shape)} is not {n} bytes"
        )
    return replace(packed, type="u8", shape=(n, 1))
