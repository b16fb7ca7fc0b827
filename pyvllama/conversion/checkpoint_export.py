"""A pair of GGUF files back into a Hugging Face checkpoint: validated whole, written, read again, then named."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyvllama.config import MllamaConfig
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.output import (
    Meter,
    OutputTensor,
    Progress,
    check_existing,
    make_directory,
    n_cores,
    work_directory,
)
from pyvllama.conversion.pair_config import (
    check_files,
    config_json,
    generation_json,
    preprocessor_json,
    with_dtype,
)
from pyvllama.conversion.pair_tensors import hf_tensors, quantized_types
from pyvllama.conversion.pair_vocabulary import pair_vocabulary, tokenizer_files
from pyvllama.conversion.safetensors_file import (
    INDEX_NAME,
    arrange_files,
    header_bytes,
    index_json,
    verify_tensors,
    write_safetensors,
)
from pyvllama.conversion.vocab import Vocabulary, read_vocabulary
from pyvllama.conversion.writer import publish, writing
from pyvllama.errors import CheckpointError, ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile, pairing_hash
from pyvllama.locate import locate

__all__ = ["ExportPlan", "export", "plan_export", "write_export"]

MAX_FILE_BYTES = 5 * 10**9
"""Of a safetensors file, as on the Hub."""

_TORCH_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_READ_FIRST = ("*.safetensors", "*.safetensors.index.json", "chat_template.jinja", "processor_config.json")
"""Files that a reader would take before those that are written here, or beside them."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write; nothing is written yet."""

    json_files: Mapping[str, Any]
    """File name -> JSON value."""
    tensor_files: Mapping[str, list[OutputTensor]]
    """File name -> its tensors, in order."""
    notes: tuple[str, ...] = ()
    """What the user should know of the result."""

    @property
    def names(self) -> list[str]:
        """All file names; config.json, which makes the directory a checkpoint, last."""
        names = [*self.tensor_files, *self.json_files]
        return sorted(names, key=lambda name: name == "config.json")


def export(
    model: str | Path,
    out_dir: str | Path,
    *,
    mmproj: str | Path | None = None,
    dequantize: bool = False,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a pair back as a Hugging Face checkpoint: config, tokenizer, safetensors in the Hub's layout.

    A pair that was converted without loss (F32, or the checkpoint's own type) gives the checkpoint's tensors back, bit
    for bit, and converting it again gives the same pair. The text file may be somebody else's Llama of the same shape;
    then the image token's row comes from the mmproj. Memory stays at a few slices of a tensor.

    Args:
        model: a text GGUF (of a split one the first file), or a directory with the pair.
        out_dir: directory for the checkpoint, made if need be.
        mmproj: the mmproj file, where it is not beside the text file.
        dequantize: take quantized files, and write their rounded weights as BF16.
        progress: called after every slice, at least once a tensor.
        overwrite: replace files of the same names.

    Returns:
        `out_dir`.

    Raises:
        ModelNotFound: there is no pair at `model`.
        FormatError: a file is damaged or of another kind, or the two do not fit.
        ConfigError: a file is quantized, a file exists, or the disk is full.
        CheckpointError: a tensor holds numbers that are not finite.
        Cancelled: `progress` returned False.
    """
    plan = plan_export(model, mmproj=mmproj, dequantize=dequantize)
    return write_export(plan, out_dir, progress=progress, overwrite=overwrite)


def plan_export(model: str | Path, *, mmproj: str | Path | None = None, dequantize: bool = False) -> ExportPlan:
    """All that `export` will do, found without writing a byte. Arguments and errors as there."""
    pair = locate(model, mmproj)
    text_file, mmproj_file = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    check_files(text_file, mmproj_file)
    config_file = config_json(text_file, mmproj_file)
    config = MllamaConfig.from_hf_json(config_file)
    tensors = hf_tensors(text_file, mmproj_file, config, dequantize=dequantize)
    vocab = pair_vocabulary(text_file, mmproj_file, config.text.n_embedding_rows, config.image_token_index)
    ids = {"bos_token_id": vocab.bos, "eos_token_id": list(vocab.eog)}
    if vocab.pad is not None:
        ids["pad_token_id"] = vocab.pad
    config_file = {**config_file, **ids, "text_config": {**config_file["text_config"], **ids}}
    tensor_files = arrange_files(tensors, MAX_FILE_BYTES)
    files = {
        "config.json": with_dtype(config_file, _TORCH_TYPES[_most_frequent_type(tensors)]),
        "generation_config.json": {**ids, **generation_json(text_file)},
        "preprocessor_config.json": preprocessor_json(mmproj_file),
        **tokenizer_files(
            vocab,
            adds_bos=text_file.metadata.get("tokenizer.ggml.add_bos_token", True) is True,
            max_length=config.text.max_position_embeddings,
        ),
    }
    _check_vocabulary(pair.text, files, vocab)
    if len(tensor_files) > 1:
        files[INDEX_NAME] = index_json(tensor_files)
    return ExportPlan(files, tensor_files, tuple(_notes(text_file, mmproj_file)))


def write_export(
    plan: ExportPlan, out_dir: str | Path, *, progress: Progress | None = None, overwrite: bool = False
) -> Path:
    """Write what `plan_export` has planned. Arguments and errors as of `export`."""
    out_dir = Path(out_dir)
    paths = [out_dir / name for name in plan.names]
    check_existing(paths, overwrite=overwrite)
    _check_others(out_dir, set(plan.names))
    make_directory(out_dir)
    contents = {name: _json_bytes(value) for name, value in plan.json_files.items()}
    tensors = [t for tensors in plan.tensor_files.values() for t in tensors]
    n_tensor_bytes = sum(t.spec.n_bytes for t in tensors)
    n_bytes = n_tensor_bytes + sum(map(len, contents.values()))
    n_bytes += sum(len(header_bytes(tensors)) for tensors in plan.tensor_files.values())
    meter = Meter(progress, n_tensor_bytes)
    checksums: dict[str, int] = {}
    with work_directory(out_dir, n_bytes) as work:
        for name, content in contents.items():
            _write_bytes(work / name, content)
        for name, members in plan.tensor_files.items():
            checksums |= write_safetensors(work / name, members, n_cores(), meter)
        meter.check(f"verifying {out_dir.name}")
        verify_tensors(Checkpoint(work), plan.tensor_files, checksums)
        for name, content in contents.items():
            if (work / name).read_bytes() != content:
                raise FormatError(f"{name} read back is not what was written: is the disk failing?")
        publish({work / path.name: path for path in paths})
    return out_dir


class _PlannedCheckpoint(Checkpoint):
    """JSON files that are not written yet, as a checkpoint without tensors."""

    def __init__(self, path: Path, files: Mapping[str, Any]) -> None:
        self.path = path
        self.notes, self.base, self.borrowed = [], None, {}
        self.tensors = {}
        self._files = files

    def optional_json(self, name: str) -> dict[str, Any] | None:
        return self._files.get(name)

    def optional_text(self, name: str) -> str | None:
        return None


def _check_vocabulary(source: Path, files: Mapping[str, Any], vocab: Vocabulary) -> None:
    """See that converting the checkpoint will find the same tokens again."""
    config = MllamaConfig.from_hf_json(files["config.json"])
    try:
        found = read_vocabulary(_PlannedCheckpoint(source, files), config.text)
    except CheckpointError as e:
        raise FormatError(f"{source}: its vocabulary makes no tokenizer.json: {e}") from e
    if replace(found, eog=vocab.eog, chat_templates=vocab.chat_templates) != vocab:
        raise FormatError(f"{source}: its vocabulary does not come back from a tokenizer.json")


def _check_others(out_dir: Path, names: set[str]) -> None:
    """Refuse a directory that would hold two checkpoints, asked for overwriting or not."""
    others = sorted({p.name for pattern in _READ_FIRST for p in out_dir.glob(pattern)} - names)
    if others:
        raise ConfigError(f"{out_dir} holds files of another checkpoint ({', '.join(others[:5])}); choose another one")


def _most_frequent_type(tensors: list[OutputTensor]) -> str:
    sizes = Counter[str]()
    for t in tensors:
        sizes[t.spec.type] += t.spec.n_bytes
    return sizes.most_common(1)[0][0]


def _notes(text: GGUFFile, mmproj: GGUFFile) -> Iterator[str]:
    for file in (text, mmproj):
        if types := quantized_types(file):
            yield f"{file.path.name} is quantized ({', '.join(types)}): its rounded weights are written as BF16"
    if pairing_hash(text) != mmproj.metadata.get("clip.mllama.pairing_hash"):
        yield f"{mmproj.path.name} was made with other text weights than {text.path.name}: both are taken as they are"


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_bytes(path: Path, content: bytes) -> None:
    with writing(path), path.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
