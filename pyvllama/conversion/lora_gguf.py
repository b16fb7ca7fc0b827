"""A LoRA adapter as llama.cpp's LoRA GGUF, to be put on and off the text model while it runs.

llama.cpp adds alpha / r * B @ A to a weight of its model, which has the self-attention layers alone (renumbered), their
q and k rows in the order of its rotary embedding, and rows for 8 tokens more than lm_head. So only adapters that change
nothing but that text model can be converted; all others can be merged (`convert(base, lora=[adapter])`).
Format: llama.cpp's src/llama-adapter.cpp; `token_embd` has its factors the other way round (llm_build_inp_embd).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import MllamaConfig
from pyvllama.conversion.adapter import Adapter, Delta, find_adapter
from pyvllama.conversion.base_files import BaseFiles, find_base
from pyvllama.conversion.conversion_plan import model_name
from pyvllama.conversion.output import OutputFile, OutputTensor, write_files
from pyvllama.conversion.policy import Role
from pyvllama.conversion.source_tensor import from_f32
from pyvllama.conversion.tensor_map import EMBED_TOKENS, LM_HEAD, Destination, PlannedTensor, plan
from pyvllama.conversion.text_files import listing
from pyvllama.conversion.transforms import identity
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound

__all__ = ["LORA_TYPES", "convert_lora", "plan_lora"]

LORA_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
"""Type -> llama.cpp's number of the file type."""

_ADVICE = "merge it into its base model instead: pyvllama convert BASE --lora"
_UNKNOWN_BASE = "the base model is needed for its config.json: name it with --base (a directory or an id of the Hub)"


def convert_lora(
    adapter: str | Path,
    out_dir: str | Path,
    *,
    base: str | Path | None = None,
    type: str = "f16",
    name: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the file that `plan_lora` plans.

    Args:
        adapter, out_dir, base, type, name, revision: see `plan_lora`.
        overwrite: replace a file of the same name.

    Returns:
        The file's path.

    Raises:
        As `plan_lora`.
        ConfigError: the file exists, or the disk is full.
    """
    planned = plan_lora(adapter, out_dir, base=base, type=type, name=name, revision=revision)
    return write_files([planned], overwrite=overwrite)[0]


def plan_lora(
    adapter: str | Path,
    out_dir: str | Path,
    *,
    base: str | Path | None = None,
    type: str = "f16",
    name: str | None = None,
    revision: str | None = None,
) -> OutputFile:
    """An adapter of PEFT's form as `<name>-<TYPE>-LoRA.gguf`, which llama.cpp loads beside the text model.

    Args:
        adapter: directory of the adapter (adapter_config.json, adapter_model.safetensors); or, as a str and where no
            such path exists, the id of a repository on the Hub.
        out_dir: directory for the file, made if need be.
        base: directory or Hub id of the model it was trained on, of which config.json is read; None: the one that
            adapter_config.json names.
        type: 'f32', 'f16' or 'bf16'.
        name: of the adapter; None: the name of `adapter`.
        revision: branch, tag or commit of an adapter on the Hub; None: its main branch.

    Returns:
        What is to be written; nothing is yet.

    Raises:
        ModelNotFound: there is no such adapter, or no such base.
        CheckpointError: it is damaged, does not fit the base, or changes what llama.cpp's text model does not have:
            cross-attention layers, the vision tower, norms, whole modules.
        ConfigError: an option is not supported.
    """
    if type.lower() not in LORA_TYPES:
        raise ConfigError(f"type = {type!r}: adapters are written as {', '.join(LORA_TYPES)}")
    kind = type.lower()
    found = find_adapter(adapter, revision=revision)
    named = model_name(name or found.name)
    model = _base_of(found, base)
    config = model.optional_json("config.json")
    if config is None:
        raise CheckpointError(f"{model.name} holds no config.json; {_UNKNOWN_BASE}")
    planned = _targets(found, MllamaConfig.from_hf_json(config))
    alpha = found.alpha if found.alpha > 0 else 1.0
    metadata = {
        "general.architecture": ("str", "llama"),
        "general.type": ("str", "adapter"),
        "general.name": ("str", named),
        "general.file_type": ("u32", LORA_TYPES[kind]),
        "general.base_model.count": ("u32", 1),
        "general.base_model.0.name": ("str", Path(model.name).name),
        "adapter.type": ("str", "lora"),
        "adapter.lora.alpha": ("f32", alpha),
    }
    tensors = [x for t in planned for x in _pair(found.deltas[t.hf], t, kind, alpha)]
    return OutputFile(Path(out_dir) / f"{named}-{kind.upper()}-LoRA.gguf", metadata, tuple(tensors))


def _base_of(adapter: Adapter, base: str | Path | None) -> BaseFiles:
    if base is None and not adapter.base:
        raise ConfigError(f"{adapter.path} does not say what it was trained on; {_UNKNOWN_BASE}")
    if base is not None:
        return find_base(base)
    try:
        return find_base(str(adapter.base))
    except ModelNotFound as e:
        raise ModelNotFound(f"{adapter.path} was trained on {adapter.base}, but {e}; {_UNKNOWN_BASE}") from e


def _targets(adapter: Adapter, config: MllamaConfig) -> list[PlannedTensor]:
    """The text model's tensors that the adapter changes, in their order."""
    text: dict[str, PlannedTensor] = {}
    for t in plan(config, filler_token=0):
        if t.file is Destination.TEXT and t.role is not Role.EXACT:
            text.setdefault(t.hf, t)  # the first of a tied embedding is the embedding
    problems = [f"changes {name}" for name in adapter.deltas if name not in text]
    problems += [f"changes {name}" for name in adapter.bias_deltas]
    problems += [f"replaces {name}" for name in adapter.replacements]
    if config.text.tie_word_embeddings and EMBED_TOKENS in adapter.deltas:
        problems.append(f"changes {EMBED_TOKENS}, which is the output as well")
    problems += [f"changes {name} by DoRA" for name, d in adapter.deltas.items() if name in text and d.magnitude]
    if problems:
        raise CheckpointError(
            f"{adapter.path} does what no LoRA of llama.cpp's text model can; {_ADVICE} {adapter.path}\n"
            f"{listing(problems, 10)}"
        )
    wrong = [
        f"{delta.a.name}: for a weight of {list(shape)}, but the base's is {list(text[name].hf_shape)}"
        for name, delta in adapter.deltas.items()
        if (shape := (delta.n_rows, delta.n_per_row)) != text[name].hf_shape
    ]
    if wrong:
        raise CheckpointError(f"{adapter.path} does not fit its base model:\n{listing(wrong)}")
    return [t for name, t in text.items() if name in adapter.deltas]


def _pair(delta: Delta, t: PlannedTensor, kind: str, alpha: float) -> Iterator[OutputTensor]:
    """Both factors; what of the scale is not alpha / r (rslora, alpha_pattern) goes into B."""
    correction = np.float32(delta.scale * delta.rank / alpha)
    left, right = delta.left(identity(delta.n_rows)), delta.right()
    if t.hf == EMBED_TOKENS:
        a, b = left, right.T * correction  # rows of a are looked up; b is multiplied with them
    else:
        # Rows behind lm_head's, of tokens that are never sampled, stay as they are.
        index = t.index[: len(left)] if t.hf == LM_HEAD else t.index
        b = np.zeros((t.shape[0], delta.rank), np.float32)
        b[: len(index)] = left[index] * correction
        a = right
    for factor, part in ((a, "lora_a"), (b, "lora_b")):
        data = from_f32(np.ascontiguousarray(factor), kind)
        if not np.isfinite(factor).all() or (kind == "f16" and not np.isfinite(data).all()):
            raise CheckpointError(
                f"{delta.a.path}: {delta.a.name} or its partner holds numbers that are no finite {kind.upper()}"
            )
        spec = TensorSpec(f"{t.name}.{part}", factor.shape, kind)
        yield OutputTensor(spec, f"{delta.a.path.name}: {delta.a.name}", _constant(data))


def _constant(data: NDArray[Any]) -> Any:
    return lambda _: iter((data,))
