"""Import what Ollama has on the disk: its files, repacked into ours without requantizing a byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyvllama.conversion.chat_templates import corrected_with_note
from pyvllama.conversion.conversion_plan import ConversionPlan, model_name, n_params
from pyvllama.conversion.family_template import FAMILY_TEMPLATE
from pyvllama.conversion.metadata import mmproj_metadata, text_metadata
from pyvllama.conversion.ollama_config import (
    is_llama3_template,
    read_config,
    read_params,
    read_preprocessor,
    read_vocabulary,
)
from pyvllama.conversion.ollama_digests import with_digests_checked
from pyvllama.conversion.ollama_pair import OllamaFiles, OllamaTensors
from pyvllama.conversion.ollama_store import Blob, Manifest, find_model
from pyvllama.conversion.ollama_tensors import Generation
from pyvllama.conversion.output import OutputFile, Progress, write_files
from pyvllama.conversion.provenance import provenance
from pyvllama.conversion.splitting import split_file
from pyvllama.conversion.tensor_map import Destination
from pyvllama.conversion.writer import Metadata
from pyvllama.errors import CheckpointError, ConfigError
from pyvllama.types import Pair

__all__ = ["CROSS_QK_ORDERS", "import_ollama", "plan_import"]

CROSS_QK_ORDERS = ("interleaved", "plain")
"""How the q and k rows of the cross-attention layers may stand in Ollama's file."""

_TYPE_SUFFIX = re.compile(r"-(fp16|f16|bf16|f32|i?q\d\w*)$", re.IGNORECASE)
_LICENSES = {"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT": "llama3.2"}
"""First line of a licence -> its id on the Hub."""


def import_ollama(
    source: str,
    out_dir: str | Path,
    *,
    name: str | None = None,
    cross_qk_order: str | None = None,
    split_max_bytes: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Pair:
    """Write the pair of files of a model that Ollama has pulled or made. See `plan_import` for what is raised.

    Args:
        source: `llama3.2-vision`, `llama3.2-vision:11b-instruct-q4_K_M`, `user/model:tag`, `host/user/model:tag`;
            with or without `ollama:` before it.
        out_dir: directory for both files, made if need be.
        name: of the model and the files; None: from `source`.
        cross_qk_order: 'interleaved' or 'plain', see `plan_import`.
        split_max_bytes: write the text model in shards of at most that size; None: in one file.
        progress: called after every slice, at least once a tensor.
        overwrite: replace files of the same names.

    Raises:
        ConfigError, ModelNotFound, CheckpointError, FormatError: as `plan_import`; a file exists, the disk is full.
        Cancelled: `progress` returned False.
    """
    planned = plan_import(source, out_dir, name=name, cross_qk_order=cross_qk_order, split_max_bytes=split_max_bytes)
    write_files(planned.files, progress=progress, overwrite=overwrite)
    return Pair(planned.text[0].path, planned.mmproj.path)


def plan_import(
    source: str,
    out_dir: str | Path,
    *,
    name: str | None = None,
    cross_qk_order: str | None = None,
    split_max_bytes: int | None = None,
    mmproj_only: bool = False,
) -> ConversionPlan:
    """All that an import will do, found without writing a byte; `output.write_files(plan.files)` does it.

    While the files are written, the blobs' SHA-256 is computed, and compared before the last tensor is done.

    Args:
        cross_qk_order: how the rows of q and k stand in the cross-attention layers of Ollama's file. None and
            'interleaved': as Ollama's converter writes them, permuted as for rotary embeddings, so they go back.
            'plain': as in the checkpoint.
        mmproj_only: leave the text model out.
        source, out_dir, name, split_max_bytes: see `import_ollama`.

    Raises:
        ModelNotFound: no store, or no such model; the message says where was looked and what there is.
        CheckpointError: a manifest or a blob is damaged or missing.
        FormatError: a GGUF is damaged, or was badly converted.
        ConfigError: another architecture, a faulty generation of files, an option that means nothing here.
    """
    if cross_qk_order not in (None, *CROSS_QK_ORDERS):
        raise ConfigError(f"cross_qk_order = {cross_qk_order!r} is not supported: {' or '.join(CROSS_QK_ORDERS)}")
    manifest = find_model(source)
    model, projector = _weights(manifest)
    files = OllamaFiles.open(model, projector, f"ollama:{manifest.name}")
    config = read_config(
        files.text.metadata,
        files.vision.metadata,
        n_embedding=files.n_rows("token_embd.weight"),
        n_lm_head=files.n_rows("output.weight") or None,
        where=files.where,
    )
    notes: list[str] = []
    template = _chat_template(manifest, files, notes)
    vocab = read_vocabulary(files.text.metadata, config, chat_template=template, where=files.where)
    tensors = OllamaTensors(files, config, cross_qk_order != "plain", vocab.filler_token)
    called = _file_name(name, manifest)
    text_type, tower_type = tensors.text_type(), tensors.tower_type()
    text_keys = text_metadata(
        name=called,
        config=config,
        vocab=vocab,
        generation=_params(manifest),
        chosen=text_type,
        n_params=n_params(tensors.planned, Destination.TEXT),
    )
    mmproj_keys = mmproj_metadata(
        name=called,
        config=config,
        preprocessor=read_preprocessor(config),
        chat_template=template,
        pairing_hash=tensors.pairing_hash(),
        chosen=tower_type,
        n_params=n_params(tensors.planned, Destination.MMPROJ),
    )
    n_all = n_params(tensors.planned, Destination.TEXT) + n_params(tensors.planned, Destination.MMPROJ)
    origin = provenance(called, n_params=n_all).keys | _license(manifest)
    notes += _notes(manifest, files, cross_qk_order)

    def output(destination: Destination, file_name: str, metadata: Metadata) -> OutputFile:
        return OutputFile(Path(out_dir) / file_name, {**metadata, **origin}, tensors.outputs(destination))

    mmproj = output(Destination.MMPROJ, f"mmproj-{called}-{tower_type.name.upper()}.gguf", mmproj_keys)
    text = [] if mmproj_only else [output(Destination.TEXT, f"{called}-{text_type.name.upper()}.gguf", text_keys)]
    blobs = [model, *([projector] if projector else [])]
    *text, mmproj = with_digests_checked(blobs, (*text, mmproj))
    if text and split_max_bytes is not None:
        text = split_file(text[0], split_max_bytes)
    return ConversionPlan(called, tuple(text), mmproj, tuple(notes))


def _weights(manifest: Manifest) -> tuple[Blob, Blob | None]:
    """The model's blob and the projector's, if there is one."""
    models, projectors = manifest.blobs("model"), manifest.blobs("projector")
    if len(models) != 1 or len(projectors) > 1:
        raise CheckpointError(
            f"{manifest.path} lists {len(models)} models and {len(projectors)} projectors, not one and at most one"
        )
    if manifest.blobs("adapter"):
        raise ConfigError(
            f"ollama:{manifest.name} is a model with a LoRA beside it, which is not imported: convert the "
            "checkpoint and the LoRA that it was made of"
        )
    return models[0], projectors[0] if projectors else None


def _chat_template(manifest: Manifest, files: OllamaFiles, notes: list[str]) -> str:
    """The GGUF's own Jinja template, or the family's: Ollama's template is in Go's language."""
    own = files.text.metadata.get("tokenizer.chat_template")
    if not isinstance(own, str) or not own:
        used = FAMILY_TEMPLATE
        notes.append("The chat template is the one of Llama 3.2 Vision: Ollama's own is in another language.")
    else:
        used = corrected_with_note(own, notes)
    sources = [blob.text() for blob in manifest.blobs("template")]
    if any(not is_llama3_template(source) for source in sources):
        notes.append(
            "Warning: this model has a template of its own in Ollama, which cannot be taken over, and it is not of "
            "Llama 3's form: answers may differ."
        )
    return used


def _params(manifest: Manifest) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for blob in manifest.blobs("params"):
        params |= read_params(blob.text(), str(blob.path))
    return params


def _license(manifest: Manifest) -> dict[str, tuple[str, Any]]:
    """The first licence of the model: its id where it is known, its title else."""
    for blob in manifest.blobs("license"):
        title = next((line.strip(" #*") for line in blob.text().splitlines() if line.strip(" #*")), "")
        if found := _LICENSES.get(title.upper()):
            return {"general.license": ("str", found)}
        if title:
            return {"general.license": ("str", "other"), "general.license.name": ("str", title[:200])}
    return {}


def _notes(manifest: Manifest, files: OllamaFiles, cross_qk_order: str | None) -> list[str]:
    notes = []
    if cross_qk_order is None:
        sure = "" if files.generation is Generation.G3 else " (not proven for files of this age)"
        notes.append(
            "The q and k rows of the cross-attention layers are taken as interleaved, as Ollama's converter writes "
            f"them{sure}. If answers about pictures make no sense, import again with --cross-qk-order plain."
        )
    for kind, what in (("system", "a system prompt"), ("messages", "messages to begin with")):
        if manifest.blobs(kind):
            notes.append(f"This model has {what} in Ollama, which a GGUF cannot hold: give it with each chat.")
    return notes


def _file_name(given: str | None, manifest: Manifest) -> str:
    """llama3.2-vision:11b-instruct-q4_K_M -> llama3.2-vision-11b-instruct: the file's type is added later."""
    if given:
        return model_name(given)
    tag = _TYPE_SUFFIX.sub("", f"-{manifest.name.tag}")
    return model_name(manifest.name.model + ("" if tag == "-latest" else tag))
