"""Convert: load, validate the whole, plan both files; `output` writes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyvllama.config import MllamaConfig, PreprocessorConfig
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.conversion.conversion_plan import ConversionPlan, model_name, n_params
from pyvllama.conversion.embedding_rows import fit_config, fit_tensors
from pyvllama.conversion.front_matter import read_readme
from pyvllama.conversion.importance import Importance, read_importance
from pyvllama.conversion.metadata import mmproj_metadata, text_metadata
from pyvllama.conversion.ollama import plan_import
from pyvllama.conversion.ollama_store import is_ollama
from pyvllama.conversion.output import OutputFile, OutputTensor, Progress, write_files
from pyvllama.conversion.policy import Role
from pyvllama.conversion.provenance import file_stem, provenance
from pyvllama.conversion.source import find_source
from pyvllama.conversion.splitting import split_file
from pyvllama.conversion.tensor_map import Destination, PlannedTensor, plan
from pyvllama.conversion.type_rules import TypeRules
from pyvllama.conversion.typed_rows import constant, typed_rows
from pyvllama.conversion.vocab import read_vocabulary
from pyvllama.conversion.writer import Metadata, TensorSpec
from pyvllama.errors import ConfigError
from pyvllama.types import DEFAULT_MMPROJ_TYPE, DEFAULT_TEXT_TYPE, Pair

__all__ = ["ConversionPlan", "Progress", "convert", "plan_conversion"]

log = logging.getLogger("pyvllama")


def convert(
    src: str | Path,
    out_dir: str | Path,
    *,
    text_type: str | None = None,
    mmproj_type: str | None = None,
    cross_type: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: str | Path | Sequence[str | Path] = (),
    base: str | Path | None = None,
    lora: Sequence[str | Path] = (),
    name: str | None = None,
    quantized_by: str | None = None,
    revision: str | None = None,
    cross_qk_order: str | None = None,
    split_max_bytes: int | None = None,
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
            `org/name` of a repository on the Hub, which is downloaded into the Hub's own cache first; or
            `ollama:NAME[:TAG]`, a model of the local Ollama store, whose tensors keep their types.
        out_dir: directory for both files, made if need be.
        text_type: one of `policy.TEXT_TYPES`, as llama.cpp calls them; None: q4_k_m.
        mmproj_type: one of `policy.MMPROJ_TYPES`, for the vision tower and the projector; None: q8_0.
        cross_type: as text_type, for the cross-attention layers (in the mmproj); None: text_type.
        tensor_types: 'REGEX=TYPE' each, for matrices whose GGUF name matches; the first that matches decides.
        imatrix: importance matrices (`pyvllama imatrix`, or llama.cpp's for the text model).
        base: directory or Hub id of the model that `src` was made from: config.json, the tokenizer's files, the chat
            template and the like are taken from it where `src` lacks them. Its weights are not read.
        lora: directories or Hub ids of LoRA adapters (of PEFT's form), merged into the weights in this order.
        name: of the model; None: the name of `src`.
        quantized_by: your name, for the files' metadata.
        revision: branch, tag or commit of a repository on the Hub; None: its main branch.
        cross_qk_order: 'interleaved' or 'plain', of an Ollama model: see `ollama.plan_import`; None: interleaved.
        split_max_bytes: write the text model in shards of at most that size; None: in one file.
        n_threads: for quantizing; None: all cores.
        progress: called after every slice, at least once a tensor.
        overwrite: replace files of the same names.

    Returns:
        The paths of the two files; of the first shard where the text model is split.

    Raises:
        ModelNotFound: there is no checkpoint at `src`, or the Hub does not give it (the message says why).
        CheckpointError: it is incomplete or inconsistent, or not convertible to that type.
        ConfigError: an option or a value of config.json is not supported, a file exists, or the disk is full.
        FormatError: an importance matrix is damaged.
        Cancelled: `progress` returned False.
    """
    planned = plan_conversion(
        src,
        out_dir,
        text_type=text_type,
        mmproj_type=mmproj_type,
        cross_type=cross_type,
        tensor_types=tensor_types,
        imatrix=imatrix,
        base=base,
        lora=lora,
        name=name,
        quantized_by=quantized_by,
        revision=revision,
        cross_qk_order=cross_qk_order,
        split_max_bytes=split_max_bytes,
    )
    for note in planned.notes:
        log.warning("%s", note)
    write_files(planned.files, n_threads=n_threads, progress=progress, overwrite=overwrite)
    return Pair(planned.text[0].path, planned.mmproj.path)


def plan_conversion(
    src: str | Path,
    out_dir: str | Path,
    *,
    text_type: str | None = None,
    mmproj_type: str | None = None,
    cross_type: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: str | Path | Sequence[str | Path] = (),
    base: str | Path | None = None,
    lora: Sequence[str | Path] = (),
    name: str | None = None,
    quantized_by: str | None = None,
    revision: str | None = None,
    cross_qk_order: str | None = None,
    split_max_bytes: int | None = None,
    mmproj_only: bool = False,
) -> ConversionPlan:
    """All that `convert` will do, found without writing a byte; `output.write_files(plan.files)` does it.

    Args:
        mmproj_only: leave the text model out, for those who have a Llama 3.1 of the same shape.
        src, out_dir, text_type, mmproj_type, cross_type, tensor_types, imatrix, base, lora, name, quantized_by,
            revision, cross_qk_order, split_max_bytes: see `convert`.

    Raises:
        As `convert`, but for what goes wrong while writing.
    """
    if mmproj_only and split_max_bytes is not None:
        raise ConfigError("the text model is what a size splits, but the mmproj alone is to be written")
    if is_ollama(src):
        _refuse_meaningless(
            src,
            text_type=text_type,
            mmproj_type=mmproj_type,
            cross_type=cross_type,
            tensor_types=tensor_types,
            imatrix=imatrix,
            base=base,
            lora=lora,
            revision=revision,
            quantized_by=quantized_by,
        )
        return plan_import(
            src,
            out_dir,
            name=name,
            cross_qk_order=cross_qk_order,
            split_max_bytes=split_max_bytes,
            mmproj_only=mmproj_only,
        )
    if cross_qk_order is not None:
        raise ConfigError(f"cross_qk_order = {cross_qk_order!r}: {src} is no model of Ollama's (ollama:NAME)")
    importance = read_importance(imatrix)
    rules = TypeRules.from_options(
        text_type or DEFAULT_TEXT_TYPE,
        mmproj_type or DEFAULT_MMPROJ_TYPE,
        cross_type,
        tensor_types,
        has_importance=importance is not None,
    )
    source = find_source(src, revision=revision, has_base=base is not None)
    checkpoint = source.open(base=base, lora=lora)
    config = fit_config(checkpoint, MllamaConfig.from_hf_json(checkpoint.json("config.json")))
    preprocessor = _read_preprocessor(checkpoint, config)
    vocab = read_vocabulary(checkpoint, config.text)
    planned = plan(config, vocab.filler_token)
    checkpoint.tensors = fit_tensors(checkpoint.tensors, config, vocab.filler_token)
    unused = frozenset({"language_model.lm_head.weight"} if config.text.tie_word_embeddings else ())
    checkpoint.check({t.hf: t.hf_shape for t in planned if t.hf}, unused)
    n_all = n_params(planned, Destination.TEXT) + n_params(planned, Destination.MMPROJ)
    name = model_name(name or file_stem(source.name, n_all))
    origin = provenance(
        name,
        readme=read_readme(source.path),
        repo_id=source.repo_id,
        config=checkpoint.json("config.json"),
        n_params=n_all,
        quantized_by=quantized_by,
    )
    wanted = [t for t in planned if t.file is Destination.MMPROJ or not mmproj_only]
    rules.check_overrides(t.name for t in wanted if t.role not in (Role.EXACT, Role.TABLE))
    text_keys = text_metadata(
        name=name,
        config=config,
        vocab=vocab,
        generation=checkpoint.optional_json("generation_config.json") or {},
        chosen=rules.text,
        n_params=n_params(planned, Destination.TEXT),
    )
    mmproj_keys = mmproj_metadata(
        name=name,
        config=config,
        preprocessor=preprocessor,
        chat_template=vocab.chat_templates.get("default"),
        pairing_hash=_pairing_hash(checkpoint, planned),
        chosen=rules.mmproj,
        n_params=n_params(planned, Destination.MMPROJ),
    )
    for keys in (text_keys, mmproj_keys):
        keys.update(origin.keys)
        keys.update(importance.metadata() if importance is not None else {})
    notes = [*checkpoint.notes, *origin.notes]

    def output(destination: Destination, file_name: str, metadata: Metadata) -> OutputFile:
        tensors = [_output_tensor(checkpoint, t, rules, importance) for t in planned if t.file is destination]
        return OutputFile(Path(out_dir) / file_name, metadata, tuple(tensors))

    mmproj = output(Destination.MMPROJ, f"mmproj-{name}-{rules.mmproj.name.upper()}.gguf", mmproj_keys)
    text = [] if mmproj_only else [output(Destination.TEXT, f"{name}-{rules.text.name.upper()}.gguf", text_keys)]
    if importance is not None and (note := importance.note([*text, mmproj])):
        notes.append(note)
    shards = text if split_max_bytes is None else split_file(text[0], split_max_bytes)
    return ConversionPlan(name, tuple(shards), mmproj, tuple(notes))


def _refuse_meaningless(src: str | Path, **options: Any) -> None:
    if given := [option for option, value in options.items() if value]:
        raise ConfigError(f"{src}: an import from Ollama requantizes nothing, so it takes no {', '.join(given)}")


def _read_preprocessor(checkpoint: Checkpoint, config: MllamaConfig) -> PreprocessorConfig:
    processor = checkpoint.optional_json("processor_config.json") or {}
    if "image_processor" not in processor:  # transformers 5 has all in one file, older ones have not
        processor = checkpoint.json("preprocessor_config.json")
    preprocessor = PreprocessorConfig.from_hf_json(processor)
    ours = (preprocessor.tile_size, preprocessor.max_num_tiles)
    models = (config.vision.image_size, config.vision.max_num_tiles)
    if ours != models:
        raise ConfigError(
            f"preprocessor_config.json makes {ours[1]} tiles of {ours[0]} pixels, "
            f"but config.json's vision tower takes {models[1]} of {models[0]}"
        )
    return preprocessor


def _output_tensor(
    checkpoint: Checkpoint, t: PlannedTensor, rules: TypeRules, importance: Importance | None
) -> OutputTensor:
    if t.values is not None:
        return OutputTensor(TensorSpec(t.name, t.shape, "f32"), checkpoint.config_file, constant(t.values))
    source = checkpoint.tensors[t.hf]
    spec = TensorSpec(t.name, t.shape, rules.type_of(t.name, t.role, t.layer, t.shape[-1], source.type))
    weights = None
    if importance is not None and t.role not in (Role.EXACT, Role.TABLE):
        weights = importance.of(spec)
    if weights is None:
        rules.check_importance(t.name, t.role, spec.type)
    origin = f"{source.path.name}: {source.name}"
    return OutputTensor(spec, origin, typed_rows(source, t.index, spec, weights))


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
