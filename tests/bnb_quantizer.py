"""bitsandbytes' formats written by NumPy: an independent quantizer, and what its values are when read.

The tables are literals, copied from bitsandbytes 0.50.2: functional.py (get_4bit_type; create_normal_map's result for
nf4) and backends/utils.py.
"""

import json
from collections.abc import Iterator

import factories
import numpy as np
from raw_safetensors import Stored, f32

TABLES = {
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    # get_4bit_type: these over 12
    "fp4": tuple(
        x / 12 for x in (0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0)
    ),
}
FP4_ROUNDED = (0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25, 0, -0.0052, -0.6667, -1, -0.3333, -0.5, -0.1667, -0.25)
"""backends/utils.py prints the same table with four digits."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def four_bit(
    name: str, weight: Stored, kind: str = "nf4", *, block: int = 64, nested: bool = True, storage: str = "U8"
) -> tuple[dict[str, Stored], np.ndarray]:
    """(the tensors that take the place of a weight, its values when it is read: float32, rounded to its type)."""
    dtype, values = weight[0], f32(weight)
    table = np.array(TABLES[kind], np.float32)
    flat = values.reshape(-1)
    padded = np.concatenate([flat, np.zeros(-len(flat) % block, np.float32)]).reshape(-1, block)
    absmax = np.abs(padded).max(axis=1)
    codes = np.abs(padded[:, :, None] / np.maximum(absmax, 1e-30)[:, None, None] - table).argmin(axis=2)
    packed = codes.reshape(-1)[: len(flat) + len(flat) % 2].astype(np.uint8)
    packed = packed[::2] << 4 | packed[1::2]
    state = {"quant_type": kind, "blocksize": block, "dtype": _DTYPES[dtype], "shape": list(values.shape)}
    parts: dict[str, Stored] = {f"{name}.quant_map": ("F32", table)}
    if nested:
        scale_table = np.sort(np.sinh(np.linspace(-3, 3, 256)) / np.sinh(3)).astype(np.float32)
        offset = np.float32(absmax.mean())
        groups = np.concatenate([absmax - offset, np.zeros(-len(absmax) % 256, np.float32)]).reshape(-1, 256)
        largest = np.abs(groups).max(axis=1)
        indices = np.abs((groups / np.maximum(largest, 1e-30)[:, None])[:, :, None] - scale_table).argmin(axis=2)
        indices = indices.reshape(-1)[: len(absmax)].astype(np.uint8)
        absmax = scale_table[indices] * np.repeat(largest, 256)[: len(indices)] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        parts |= {
            f"{name}.absmax": ("U8", indices),
            f"{name}.nested_absmax": ("F32", largest),
            f"{name}.nested_quant_map": ("F32", scale_table),
        }
    else:
        parts[f"{name}.absmax"] = ("F32", absmax)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts[f"{name}.quant_state.bitsandbytes__{kind}"] = ("U8", text)
    stored = packed.reshape(-1, 1) if storage == "U8" else packed.view("<u2").reshape(-1, 1)
    result = (table[codes] * absmax.astype(np.float32)[:, None]).reshape(-1)[: len(flat)].reshape(values.shape)
    return {name: (storage, stored)} | parts, rounded(result, dtype)


def int8(name: str, weight: Stored) -> tuple[dict[str, Stored], np.ndarray]:
    """Same, for LLM.int8."""
    values = f32(weight)
    scales = np.abs(values).max(axis=1)
    codes = np.rint(values / scales[:, None] * 127).astype(np.int8)
    module = name.removesuffix(".weight")
    parts = {name: ("I8", codes), f"{module}.SCB": ("F32", scales), f"{module}.weight_format": ("U8", np.uint8(0))}
    return parts, codes.astype(np.float32) * scales[:, None] * np.float32(7.874015718698502e-3)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values, rounded to what a type can hold."""
    return f32((dtype, factories.STORED[dtype](values)))


def linear_weights(names) -> Iterator[str]:
    """The names of those weights that transformers hands to bitsandbytes: linear layers, lm_head left out."""
    for name in names:
        if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "multi_modal_projector.weight")):
            yield name
