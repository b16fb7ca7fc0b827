"""The tensors of a pair of GGUF files as the Hugging Face checkpoint's: names, order of rows and types put back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import MllamaConfig
from pyvllama.conversion import transforms
from pyvllama.conversion.checkpoint import listing
from pyvllama.conversion.gguf_tensor import gguf_tensor
from pyvllama.conversion.output import OutputTensor
from pyvllama.conversion.policy import Role
from pyvllama.conversion.tensor_map import EMBED_TOKENS, Destination, PlannedTensor, plan
from pyvllama.conversion.transforms import Index
from pyvllama.conversion.typed_rows import Slices, typed_rows
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile

__all__ = ["hf_tensors", "quantized_types"]

ROPE_FACTORS = "rope_freqs.weight"
_IMAGE_ROW = "mm.image_token_embd.weight"
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_FLOATS = ("f32", "f16", "bf16")
_DEQUANTIZED = "bf16"
_SCAN_ELEMENTS = 1 << 22
"""Values looked at in one go (16 MiB)."""


def quantized_types(file: GGUFFile) -> list[str]:
    """The quantized types that a file's tensors have, most frequent first."""
    counts = Counter(t.type for t in file.tensors.values() if t.type not in _FLOATS)
    return [name for name, _ in counts.most_common()]


def hf_tensors(text: GGUFFile, mmproj: GGUFFile, config: MllamaConfig, *, dequantize: bool) -> list[OutputTensor]:
    """Every tensor of the checkpoint, under its name on the Hub and in its layout; nothing of them is read yet.

    Matrices keep their type. Norms, biases and other exact tensors, F32 in GGUF whatever they were, get the type that
    most of their file's matrices have if that holds each of their values exactly, and stay F32 if it does not: so a
    checkpoint of one type comes back in that type.

    Args:
        text: the text GGUF; with or without rows for the image token and its padding.
        mmproj: the mmproj.
        config: of `pair_config.config_json`.
        dequantize: take quantized tensors, as BF16.

    Raises:
        FormatError: tensors are missing, unknown or of another shape; one message for both files.
        ConfigError: tensors are quantized, and `dequantize` was not asked for.
    """
    files = {Destination.TEXT: text, Destination.MMPROJ: mmproj}
    planned = plan(config, filler_token=0)  # its copies are what is cut off here
    _check(files, planned)
    if not dequantize and (quantized := [f for f in files.values() if quantized_types(f)]):
        found = " and ".join(f"{file.path.name} ({', '.join(quantized_types(file))})" for file in quantized)
        raise ConfigError(
            f"{found}: quantized, and what that has lost does not come back. Export an F32, F16 or BF16 pair, or take "
            "the rounded weights as BF16 with --dequantize"
        )
    common = {place: _matrix_type(file, planned, place) for place, file in files.items()}
    tensors = []
    for t in planned:
        if not t.hf or t.name == _IMAGE_ROW:
            continue
        file = files[t.file]
        name = _source_name(file, t)
        spec = TensorSpec(t.hf, t.hf_shape, _output_type(file, name, t.role, common[t.file]))
        slices = _slices(file, name, _inverse(t), spec)
        if t.hf == EMBED_TOKENS and t.name == _EMBEDDING and (missing := t.shape[0] - file.tensors[name].shape[0]):
            image_row = _slices(mmproj, _IMAGE_ROW, np.zeros(missing, dtype=np.int64), spec)
            slices = _chained(_slices(file, name, np.arange(t.shape[0] - missing), spec), image_row)
        origin = f"{file.paths[file.tensors[name].part].name}: {name}"
        tensors.append(OutputTensor(spec, origin, slices))
    return sorted(tensors, key=lambda t: _natural(t.spec.name))


def _check(files: dict[Destination, GGUFFile], planned: Sequence[PlannedTensor]) -> None:
    """See that both files hold what the configuration asks for and nothing else."""
    n_tokens = len(files[Destination.TEXT].metadata["tokenizer.ggml.tokens"])
    problems = []
    for place, file in files.items():
        expected = {_source_name(file, t): t for t in planned if t.file is place and t.hf}
        for name, t in expected.items():
            # somebody else's Llama has no rows behind vocab_size
            shape = (n_tokens, *t.shape[1:]) if name in (_EMBEDDING, _OUTPUT) else t.shape
            if (info := file.tensors.get(name)) is None:
                problems.append(f"{file.path.name}: missing: {name}")
            elif info.shape != shape:
                problems.append(f"{file.path.name}: {name}: shape {list(info.shape)}, not {list(shape)}")
        unknown = sorted(file.tensors.keys() - expected.keys() - {ROPE_FACTORS})
        problems += [f"{file.path.name}: unknown: {name}" for name in unknown]
    if problems:
        raise FormatError(f"the files do not hold the tensors of a Llama 3.2 Vision model:\n{listing(problems)}")


def _source_name(file: GGUFFile, t: PlannedTensor) -> str:
    tied = t.name == _OUTPUT and _OUTPUT not in file.tensors and _EMBEDDING in file.tensors
    return _EMBEDDING if tied else t.name


def _matrix_type(file: GGUFFile, planned: Sequence[PlannedTensor], place: Destination) -> str:
    """The type in which most of a file's matrix elements will be."""
    sizes: Counter[str] = Counter()
    for t in planned:
        if t.file is place and t.role not in (Role.EXACT, Role.TABLE):
            info = file.tensors[_source_name(file, t)]
            sizes[info.type if info.type in _FLOATS else _DEQUANTIZED] += info.n_rows * info.shape[-1]
    return sizes.most_common(1)[0][0]


def _output_type(file: GGUFFile, name: str, role: Role, common: str) -> str:
    kind = file.tensors[name].type
    if kind not in _FLOATS:
        return _DEQUANTIZED
    if kind != "f32" or role not in (Role.EXACT, Role.TABLE):
        return kind
    return common if _is_exact(file, name, common) else "f32"


def _is_exact(file: GGUFFile, name: str, kind: str) -> bool:
    """Whether every value of an F32 tensor can be written in that type as it is."""
    values: NDArray[np.float32] = file.raw(name).reshape(-1).view("<f4")
    test = _EXACT[kind]
    return all(test(values[i : i + _SCAN_ELEMENTS]) for i in range(0, len(values), _SCAN_ELEMENTS))


def _fits_f16(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        back = values.astype(np.float16).astype(np.float32)
    return bool(np.isfinite(back).all() and np.array_equal(back.view(np.uint32), values.view(np.uint32)))


_EXACT: dict[str, Callable[[NDArray[np.float32]], bool]] = {
    "f32": lambda values: True,
    "f16": _fits_f16,
    "bf16": lambda values: not (values.view(np.uint32) & 0xFFFF).any(),
}


def _inverse(t: PlannedTensor) -> Index:
    """Rows of the file's tensor, in the checkpoint's order."""
    return transforms.invert(t.index, t.hf_shape[0] if len(t.hf_shape) > 1 else 1)


def _slices(file: GGUFFile, name: str, index: Index, spec: TensorSpec) -> Slices:
    return typed_rows(gguf_tensor(file, name), index, spec)


def _chained(*parts: Slices) -> Slices:
    def slices(n_threads: int) -> Iterator[NDArray[Any]]:
        for part in parts:
            yield from part(n_threads)

    return slices


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
