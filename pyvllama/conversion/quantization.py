"""GGUF to GGUF of another type: the text model as llama.cpp's quantizer does it, and the mmproj."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyvllama.conversion.gguf_roles import Placed, place_tensors
from pyvllama.conversion.gguf_tensor import gguf_tensor
from pyvllama.conversion.importance import Importance, read_importance
from pyvllama.conversion.output import OutputFile, OutputTensor, Progress, write_files
from pyvllama.conversion.policy import Role
from pyvllama.conversion.splitting import split_file
from pyvllama.conversion.type_rules import TypeRules
from pyvllama.conversion.typed_rows import typed_rows
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile
from pyvllama.types import DEFAULT_MMPROJ_TYPE, DEFAULT_TEXT_TYPE

__all__ = ["plan_quantization", "quantize"]

_TYPE_SUFFIX = re.compile(r"[-.](F32|F16|BF16|I?Q\d\w*)(-\d{5}-of-\d{5})?$", re.IGNORECASE)
_FLOATS = ("f32", "f16", "bf16")


def quantize(
    files: Sequence[str | Path],
    out_dir: str | Path,
    *,
    text_type: str | None = None,
    mmproj_type: str | None = None,
    cross_type: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: str | Path | Sequence[str | Path] = (),
    allow_requantize: bool = False,
    split_max_bytes: int | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Quantize GGUF files of ours, or the text GGUF of any Llama.

    A text model comes out as llama.cpp's own quantizer makes it, byte for byte. All other keys are kept.

    Args:
        files: text GGUF, mmproj, or both.
        out_dir: directory for the results, made if need be. They get the sources' names with the new type.
        text_type, mmproj_type, cross_type, tensor_types, imatrix, split_max_bytes, n_threads, progress, overwrite: see
            `convert`.
        allow_requantize: take sources that are quantized already, and lose quality twice.

    Returns:
        The paths of the files written.

    Raises:
        ModelNotFound, FormatError: a file is not there, damaged, or of another kind.
        ConfigError: an option is wrong, a source is quantized already, a file exists, or the disk is full.
        Cancelled: `progress` returned False.
    """
    planned = plan_quantization(
        files,
        out_dir,
        text_type=text_type,
        mmproj_type=mmproj_type,
        cross_type=cross_type,
        tensor_types=tensor_types,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        split_max_bytes=split_max_bytes,
    )
    return write_files(planned, n_threads=n_threads, progress=progress, overwrite=overwrite)


def plan_quantization(
    files: Sequence[str | Path],
    out_dir: str | Path,
    *,
    text_type: str | None = None,
    mmproj_type: str | None = None,
    cross_type: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: str | Path | Sequence[str | Path] = (),
    allow_requantize: bool = False,
    split_max_bytes: int | None = None,
) -> list[OutputFile]:
    """What `quantize` will write; nothing is written yet. Arguments and errors as there."""
    importance = read_importance(imatrix)
    rules = TypeRules.from_options(
        text_type or DEFAULT_TEXT_TYPE,
        mmproj_type or DEFAULT_MMPROJ_TYPE,
        cross_type,
        tensor_types,
        has_importance=importance is not None,
    )
    outputs: list[OutputFile] = []
    names: list[str] = []
    for path in files:
        file = GGUFFile(path)
        is_text = _is_text(file)
        placed = _places(file, is_text=is_text)
        names += [name for name, p in placed.items() if p.role not in (Role.EXACT, Role.TABLE)]
        chosen = rules.text if is_text else rules.mmproj
        target = Path(out_dir) / f"{_TYPE_SUFFIX.sub('', Path(path).stem)}-{chosen.name.upper()}.gguf"
        tensors = [
            _output_tensor(file, name, placed.get(name), rules, importance, allow_requantize) for name in file.tensors
        ]
        is_copy = all(t.spec.type == file.tensors[t.spec.name].type for t in tensors)
        metadata = _metadata(file, chosen.number, None if is_copy else importance)
        output = OutputFile(target, metadata, tuple(tensors))
        written = split_file(output, split_max_bytes) if is_text and split_max_bytes is not None else [output]
        for target in {one.path.absolute() for one in written} & {shard.absolute() for shard in file.paths}:
            raise ConfigError(f"{target} is the source itself: choose another directory or type")
        outputs += written
    rules.check_overrides(names)
    return outputs


def _is_text(file: GGUFFile) -> bool:
    if file.metadata.get("clip.projector_type") == "mllama":
        return False
    if (kind := file.metadata.get("general.type")) in ("adapter", "imatrix"):
        what = "a LoRA adapter" if kind == "adapter" else "an importance matrix"
        raise FormatError(f"{file.path} is {what}: nothing in it can be quantized")
    if (architecture := file.metadata.get("general.architecture")) != "llama":
        raise FormatError(
            f"{file.path}: its architecture is {architecture!r}, but only Llama text models and mmproj files of Llama "
            "3.2 Vision can be quantized here"
        )
    return True


def _places(file: GGUFFile, *, is_text: bool) -> dict[str, Placed]:
    def number(key: str) -> int:
        value = file.metadata.get(key)
        if not isinstance(value, int) or value < 1:
            raise FormatError(f"{file.path}: {key} is {value!r}, but it must be a number above 0")
        return value

    prefix = "llama." if is_text else "clip.mllama.text."
    n_cross = 0 if is_text else len(file.metadata.get("clip.mllama.cross_attention_layers", ()))
    placed = place_tensors(
        file.tensors,
        n_self=number(prefix + "block_count") - n_cross,
        n_head=number(prefix + "attention.head_count"),
        n_head_kv=number(prefix + "attention.head_count_kv"),
    )
    if is_text and "output.weight" not in placed and "token_embd.weight" in placed:  # tied: the embedding is both
        placed["token_embd.weight"] = replace(placed["token_embd.weight"], role=Role.OUTPUT)
    return placed


def _metadata(file: GGUFFile, number: int, importance: Importance | None) -> dict[str, tuple[str, Any]]:
    kept = {
        key: (file.kinds[key], value) for key, value in file.metadata.items() if not key.startswith(("split.", "GGUF."))
    }
    kept |= {"general.quantization_version": ("u32", 2), "general.file_type": ("u32", number)}
    return kept | (importance.metadata() if importance is not None else {})


def _output_tensor(
    file: GGUFFile,
    name: str,
    placed: Placed | None,
    rules: TypeRules,
    importance: Importance | None,
    allow_requantize: bool,
) -> OutputTensor:
    source = gguf_tensor(file, name)
    kind = source.type
    matrix = placed is not None and placed.role not in (Role.EXACT, Role.TABLE)
    if placed is not None and (matrix or placed.role is Role.TABLE):
        kind = rules.type_of(name, placed.role, placed.layer, source.shape[-1], source.type)
    spec = TensorSpec(name, source.shape, kind)
    weights = None
    if placed is not None and matrix and kind != source.type:
        if source.type not in _FLOATS and not allow_requantize:
            raise ConfigError(
                f"{file.path}: {name} is {source.type} already, and quantizing it to {kind} would lose quality twice: "
                "quantize an F16, BF16 or F32 file, or allow it with --allow-requantize"
            )
        weights = importance.of(spec) if importance is not None else None
        if weights is None:
            rules.check_importance(name, placed.role, kind)
    index = np.arange(source.n_rows, dtype=np.int64)
    return OutputTensor(spec, f"{source.path.name}: {name}", typed_rows(source, index, spec, weights))
