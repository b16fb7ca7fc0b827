"""Convert: load, validate the whole, plan, write as a stream, read again, and only then give the files their names."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import MllamaConfig, PreprocessorConfig
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.conversion.embedding_rows import fit_config, fit_tensors
from pyvllama.conversion.metadata import mmproj_metadata, text_metadata
from pyvllama.conversion.policy import MMPROJ_TYPES, TEXT_TYPES, FileType, Role, file_type, matrix_type
from pyvllama.conversion.source import Source, find_source
from pyvllama.conversion.tensor_map import Destination, PlannedTensor, plan
from pyvllama.conversion.vocab import read_vocabulary
from pyvllama.conversion.writer import Metadata, TensorSpec, publish, verify_gguf, write_gguf
from pyvllama.errors import Cancelled, CheckpointError, ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile, pairing_hash
from pyvllama.types import Pair

__all__ = ["Progress", "convert"]

Progress = Callable[[int, int, str], "bool | None"]
"""Called with (bytes done, bytes in all, what is being done); returning False stops the conversion."""

_SLICE_ELEMENTS = 1 << 24
"""Rows are read, rearranged and quantized in slices of about this many elements (64 MiB as float32)."""

_F16_MAX = 65504.0


def convert(
    src: str | Path,
    out_dir: str | Path,
    *,
    text_type: str = "q4_k_m",
    mmproj_type: str = "q8_0",
    cross_type: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Pair:
    """Convert a Llama 3.2 Vision checkpoint into `<name>-<TEXT_TYPE>.gguf` and `mmproj-<name>-<MMPROJ_TYPE>.gguf`.

    Nothing is written before the whole checkpoint has been validated, and no file bears its final name before it has
    been read again and found equal to what was meant. Memory stays at a few slices of a tensor.

    Args:
        src: directory of an HF checkpoint (config.json, safetensors, tokenizer.json) or of Meta's
            (consolidated.*.pth, params.json, tokenizer.model); or, as a str and where no such path exists, the id
            `org/name` of a repository on the Hub, which is downloaded into the Hub's own cache first.
        out_dir: directory for both files, made if need be.
        text_type: f32, f16, bf16, q8_0 or q4_k_m.
        mmproj_type: f32, f16, bf16, q8_0 or q4_k, for the vision tower and the projector.
        cross_type: as text_type, for the cross-attention layers (in the mmproj); None: text_type.
        name: of the model; None: the name of `src`.
        revision: branch, tag or commit of a repository on the Hub; None: its main branch.
        n_threads: for quantizing; None: all cores.
        progress: called after every slice, at least once a tensor.
        overwrite: replace files of the same names.

    Returns:
        The paths of the two files.

    Raises:
        ModelNotFound: there is no checkpoint at `src`, or the Hub does not give it (the message says why).
        CheckpointError: it is incomplete or inconsistent, or not convertible to that type.
        ConfigError: an option or a value of config.json is not supported, a file exists, or the disk is full.
        Cancelled: `progress` returned False.
    """
    job = _prepare(find_source(src, revision=revision), text_type, mmproj_type, cross_type, name)
    pair = _output_paths(Path(out_dir), job, overwrite=overwrite)
    meter = _Meter(progress, sum(spec.n_bytes for part in job.parts for spec in part.specs))
    threads = n_threads or _n_cores()
    try:
        work = Path(tempfile.mkdtemp(prefix=".pyvllama-", dir=pair.text.parent))
    except OSError as e:
        raise ConfigError(f"{pair.text.parent} cannot be written to: {e.strerror or e}") from e
    try:
        temporary = [work / path.name for path in (pair.text, pair.mmproj)]
        for path, part in zip(temporary, job.parts, strict=True):
            data = (
                (spec.name, _slices(job, t, spec, threads, meter))
                for t, spec in zip(part.tensors, part.specs, strict=True)
            )
            checksums = write_gguf(path, part.metadata, part.specs, data)
            meter.check(f"verifying {path.name}")
            verify_gguf(path, part.metadata, part.specs, checksums)
        if pairing_hash(GGUFFile(temporary[0])) != job.pairing_hash:
            raise FormatError(f"{pair.text}: the pairing hash read back differs from the checkpoint's")
        publish(dict(zip(temporary, (pair.text, pair.mmproj), strict=True)))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return pair


@dataclass(frozen=True)
class _Part:
    """One of the two files: the same tensors as planned, and as the directory will list them."""

    tensors: list[PlannedTensor]
    specs: list[TensorSpec]
    metadata: Metadata


@dataclass(frozen=True)
class _Job:
    checkpoint: Checkpoint
    parts: tuple[_Part, _Part]
    name: str
    text: FileType
    mmproj: FileType
    pairing_hash: str


def _prepare(src: Source, text_type: str, mmproj_type: str, cross_type: str | None, name: str | None) -> _Job:
    """Everything that can be wrong is found here, before the first byte is written."""
    text = file_type(text_type, TEXT_TYPES, "text_type")
    cross = text if cross_type is None else file_type(cross_type, TEXT_TYPES, "cross_type")
    mmproj = file_type(mmproj_type, MMPROJ_TYPES, "mmproj_type")
    checkpoint = src.open()
    config = fit_config(checkpoint, MllamaConfig.from_hf_json(checkpoint.json("config.json")))
    processor = checkpoint.optional_json("processor_config.json") or {}
    if "image_processor" not in processor:  # transformers 5 has all in one file, older ones have not
        processor = checkpoint.json("preprocessor_config.json")
    preprocessor = PreprocessorConfig.from_hf_json(processor)
    _check_tiles(config, preprocessor)
    vocab = read_vocabulary(checkpoint, config.text)
    planned = plan(config, vocab.filler_token)
    checkpoint.tensors = fit_tensors(checkpoint.tensors, config, vocab.filler_token)
    unused = frozenset({"language_model.lm_head.weight"} if config.text.tie_word_embeddings else ())
    checkpoint.check({t.hf: t.hf_shape for t in planned if t.hf}, unused)
    name = _model_name(name or src.name)
    digest = _pairing_hash(checkpoint, planned)

    def part(file: Destination) -> tuple[list[PlannedTensor], list[TensorSpec], int]:
        tensors = [t for t in planned if t.file is file]
        specs = [TensorSpec(t.name, t.shape, _ggml_type(checkpoint, t, text, cross, mmproj)) for t in tensors]
        return tensors, specs, sum(math.prod(t.shape) for t in tensors)

    generation = checkpoint.optional_json("generation_config.json") or {}
    t_tensors, t_specs, t_params = part(Destination.TEXT)
    m_tensors, m_specs, m_params = part(Destination.MMPROJ)
    text_keys = text_metadata(
        name=name, config=config, vocab=vocab, generation=generation, chosen=text, n_params=t_params
    )
    mmproj_keys = mmproj_metadata(
        name=name,
        config=config,
        preprocessor=preprocessor,
        chat_template=vocab.chat_templates.get("default"),
        pairing_hash=digest,
        chosen=mmproj,
        n_params=m_params,
    )
    parts = (_Part(t_tensors, t_specs, text_keys), _Part(m_tensors, m_specs, mmproj_keys))
    return _Job(checkpoint, parts, name, text, mmproj, digest)


def _check_tiles(config: MllamaConfig, preprocessor: PreprocessorConfig) -> None:
    ours = (preprocessor.tile_size, preprocessor.max_num_tiles)
    models = (config.vision.image_size, config.vision.max_num_tiles)
    if ours != models:
        raise ConfigError(
            f"preprocessor_config.json makes {ours[1]} tiles of {ours[0]} pixels, "
            f"but config.json's vision tower takes {models[1]} of {models[0]}"
        )


def _model_name(name: str) -> str:
    if not name or name != Path(name).name or any(c in name for c in '<>:"|?*\\') or not name.isprintable():
        raise ConfigError(f"name = {name!r} cannot be part of a file name")
    return name


def _ggml_type(checkpoint: Checkpoint, t: PlannedTensor, text: FileType, cross: FileType, mmproj: FileType) -> str:
    n_per_row = t.shape[-1]
    if t.role is Role.EXACT:
        return "f32"
    if t.role is Role.TABLE:
        return "f32" if mmproj.base == "f32" else checkpoint.tensors[t.hf].type
    if t.role is Role.TOWER:
        return matrix_type(mmproj, t.role, t.layer, n_per_row)
    return matrix_type(text if t.file is Destination.TEXT else cross, t.role, t.layer, n_per_row)


def _pairing_hash(checkpoint: Checkpoint, planned: list[PlannedTensor]) -> str:
    """What `gguf_file.pairing_hash` will compute of the text file."""
    by_name = {t.name: t for t in planned if t.file is Destination.TEXT}
    n_layer = sum(1 for name in by_name if name.endswith(".attn_norm.weight"))
    names = [f"blk.{il}.{kind}.weight" for il in range(n_layer) for kind in ("attn_norm", "ffn_norm")]
    digest = hashlib.sha256()
    for name in (*names, "output_norm.weight"):
        t = by_name[name]
        digest.update(to_f32(checkpoint.tensors[t.hf].rows(t.index)).astype("<f4").tobytes())
    return digest.hexdigest()


def _output_paths(out_dir: Path, job: _Job, *, overwrite: bool) -> Pair:
    pair = Pair(
        text=out_dir / f"{job.name}-{job.text.name.upper()}.gguf",
        mmproj=out_dir / f"mmproj-{job.name}-{job.mmproj.name.upper()}.gguf",
    )
    if not overwrite and (existing := [str(p) for p in (pair.text, pair.mmproj) if p.exists()]):
        raise ConfigError(f"{' and '.join(existing)} exists already; ask for overwriting, or choose another directory")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out_dir).free
    except OSError as e:
        raise ConfigError(f"{out_dir} cannot be made: {e.strerror or e}") from e
    needed = sum(spec.n_bytes for part in job.parts for spec in part.specs)
    if needed > free:
        raise ConfigError(f"{out_dir} has {free / 1e9:.1f} GB free, but the files need {needed / 1e9:.1f} GB")
    return pair


def _slices(job: _Job, t: PlannedTensor, spec: TensorSpec, n_threads: int, meter: _Meter) -> Iterator[NDArray[Any]]:
    """The data of a GGUF tensor, slice by slice."""
    if t.values is not None:
        yield t.values
        meter.add(t.values.nbytes, t.name)
        return
    source = job.checkpoint.tensors[t.hf]
    step = max(1, _SLICE_ELEMENTS // source.n_per_row)
    for first in range(0, len(t.index), step):
        rows = source.rows(t.index[first : first + step])
        data = _quantize(rows, spec, source.type, f"{source.path.name}: {source.name}", n_threads)
        yield data
        meter.add(data.nbytes, t.name)


def _quantize(rows: NDArray[Any], spec: TensorSpec, source_type: str, where: str, n_threads: int) -> NDArray[Any]:
    """Rows of the source's type as rows of the file's type."""
    values = to_f32(rows)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where} holds numbers that are infinite or not a number: the checkpoint is damaged")
    if spec.type == source_type:
        return rows
    if spec.type == "f32":
        return values
    if spec.type == "f16" and float(np.abs(values).max()) > _F16_MAX:
        raise CheckpointError(f"{where} holds numbers beyond {_F16_MAX:.0f}, the largest of F16: choose BF16")
    from pyvllama._runtime import native  # noqa: PLC0415  (loads llama.cpp; validating a checkpoint needs none)

    quantized: NDArray[Any] = native.quantize(values.reshape(-1, spec.shape[-1]), spec.type, n_threads=n_threads)
    return quantized


class _Meter:
    """Adds up the bytes written, tells the caller, and stops when he says so."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def add(self, n_bytes: int, what: str) -> None:
        self.done += n_bytes
        self.check(what)

    def check(self, what: str) -> None:
        if self.progress is not None and self.progress(self.done, self.total, what) is False:
            raise Cancelled(f"the conversion was stopped at {what}; nothing was kept")


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
