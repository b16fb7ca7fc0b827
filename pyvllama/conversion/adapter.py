"""A LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors (or .bin), read and checked.

What it holds for the module X of the model: `X.lora_A.weight` [r, n_in] and `X.lora_B.weight` [n_out, r], or, for an
embedding of n rows, `X.lora_embedding_A` [r, n] and `X.lora_embedding_B` [n_per_row, r]. The weight changes by
scale * B @ A (the embedding's by its transpose). With DoRA there is `X.lora_magnitude_vector` as well. Every other
tensor takes the place of one of the model's (modules_to_save, bias).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.hub import download_adapter, is_on_hub
from pyvllama.conversion.safetensors_reader import read_safetensors, unsupported_type
from pyvllama.conversion.source_tensor import INTEGERS, SourceTensor, to_f32
from pyvllama.conversion.tensor_map import canonical_name
from pyvllama.conversion.text_files import json_object, listing, read_text
from pyvllama.conversion.torch_file import read_torch_file
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError, ModelNotFound
from pyvllama.fields import Fields

__all__ = ["CONFIG", "Adapter", "Delta", "find_adapter", "is_adapter"]

CONFIG = "adapter_config.json"
_SAFETENSORS, _BIN = "adapter_model.safetensors", "adapter_model.bin"
_OTHERS = "non_lora_state_dict.bin"
"""What trainers of LLaVA's line save beside the adapter: parameters that were trained without LoRA."""

_PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(?P<rest>\..+)?")
_SAVED = re.compile(r"\.modules_to_save(\.[^.]+)?(?=\.(weight|bias|gate|embedding)$|\.)")
_ORIGINAL = ".original_module."

_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Settings under which the weights do not change by scale * B @ A."""

_MAX = 1e30  # far beyond any rank or alpha, far below what float32 cannot hold

_CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""Ways of initialization that also change the base model's weights before the training."""


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to a weight of n_rows rows: scale * left @ right, [n_rows, n_per_row]."""

    a: SourceTensor
    """[r, n_per_row]; of an embedding [r, n_rows]."""
    b: SourceTensor
    """[n_rows, r]; of an embedding [n_per_row, r]."""
    is_embedding: bool
    scale: float
    magnitude: SourceTensor | None = None
    """DoRA's length of each row."""

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[0]

    @property
    def n_rows(self) -> int:
        """Rows of the weight."""
        return self.a.n_per_row if self.is_embedding else self.b.shape[0]

    @property
    def n_per_row(self) -> int:
        """Elements of a row of the weight."""
        return self.b.shape[0] if self.is_embedding else self.a.n_per_row

    def left(self, index: Index) -> NDArray[np.float32]:
        """Rows of the left factor: float32 [len(index), r]."""
        if self.is_embedding:
            return np.ascontiguousarray(_all(self.a)[:, index].T)
        return to_f32(self.b.rows(index)).reshape(len(index), -1)

    def right(self) -> NDArray[np.float32]:
        """The right factor: float32 [r, n_per_row]."""
        return np.ascontiguousarray(_all(self.b).T) if self.is_embedding else _all(self.a)


@dataclass(frozen=True)
class Adapter:
    """An adapter, its configuration applied."""

    path: Path
    name: str
    """What it is called unless somebody says otherwise."""
    base: str | None
    """The model it was trained on, as its configuration names it."""
    alpha: float
    """lora_alpha; each `Delta` has its own scale, with alpha_pattern and the rest in it."""
    deltas: Mapping[str, Delta]
    """Canonical name of the weight -> what is added."""
    bias_deltas: Mapping[str, tuple[SourceTensor, float]]
    """Canonical name of the bias -> what is added, and times what."""
    replacements: Mapping[str, SourceTensor]
    """Canonical name -> the tensor that takes its place."""


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (path / CONFIG).is_file() and not any(path.glob("model*.safetensors")) and not any(path.glob("*.pth"))


def find_adapter(src: str | Path, *, revision: str | None = None) -> Adapter:
    """Read an adapter.

    Args:
        src: a directory; or, as a str and where no such path exists, a Hub id `org/name`.
        revision: branch, tag or commit on the Hub.

    Raises:
        ModelNotFound: there is none.
        CheckpointError: it is damaged, or does more than change weights by low-rank matrices.
    """
    path = download_adapter(str(src), revision) if is_on_hub(src) else Path(src)
    if not (path / CONFIG).is_file():
        raise ModelNotFound(f"{src} holds no {CONFIG}: it is no LoRA adapter of PEFT's form")
    name = str(src).split("/")[1] if is_on_hub(src) else path.resolve().name
    config = json_object(path / CONFIG, read_text(path / CONFIG))
    _check_kind(path, config)
    modules, others = _sorted_tensors(_tensors(path))
    patterns = _Patterns(path, config)
    deltas: dict[str, Delta] = {}
    bias_deltas: dict[str, tuple[SourceTensor, float]] = {}
    problems: list[str] = []
    for module, parts in modules.items():
        try:
            delta = _delta(module, parts, patterns)
        except CheckpointError as e:
            problems.append(str(e))
            continue
        deltas[canonical_name(f"{module}.weight")] = delta
        if "bias" in parts:
            bias_deltas[canonical_name(f"{module}.bias")] = (parts["bias"], delta.scale)
    if problems:
        raise CheckpointError(f"{path} is no complete adapter:\n{listing(problems)}")
    base = config.get("base_model_name_or_path")
    replacements = {canonical_name(_SAVED.sub("", other)): t for other, t in others.items()}
    return Adapter(
        path, name, base if isinstance(base, str) else None, patterns.alpha, deltas, bias_deltas, replacements
    )


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path / CONFIG}: peft_type is {kind!r}, but only LORA can be converted")
    if used := [key for key in _UNSUPPORTED if config.get(key)]:
        raise CheckpointError(
            f"{path / CONFIG} uses {', '.join(used)}, which is not supported; merge the adapter with PEFT "
            "(merge_and_unload) and convert the merged model"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path / CONFIG}: init_lora_weights = {init!r} has changed the base model's weights too. Save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT and convert the merged model"
        )


def _tensors(path: Path) -> list[SourceTensor]:
    if (path / _SAFETENSORS).is_file():
        found = list(read_safetensors(path / _SAFETENSORS))
    elif (path / _BIN).is_file():
        found = list(read_torch_file(path / _BIN).values())
    else:
        raise CheckpointError(f"{path} lacks {_SAFETENSORS} (or {_BIN}); copy it from where the adapter came from")
    if (path / _OTHERS).is_file():
        found += read_torch_file(path / _OTHERS).values()
    integers = {ours: theirs for theirs, (ours, _) in INTEGERS.items()}
    for t in found:
        if t.type in integers:
            raise unsupported_type(t.path, t.name, integers[t.type])
    if not found:
        raise CheckpointError(f"{path} holds no tensors: the adapter is empty")
    return found


def _sorted_tensors(
    tensors: Sequence[SourceTensor],
) -> tuple[dict[str, dict[str, SourceTensor]], dict[str, SourceTensor]]:
    """Module -> the parts of its change; and name -> tensor of all that is no such part."""
    modules: dict[str, dict[str, SourceTensor]] = {}
    others: dict[str, SourceTensor] = {}
    for t in tensors:
        if m := _PART.fullmatch(t.name):
            part = "bias" if (m["rest"] or "").endswith(".bias") else m["part"]
            modules.setdefault(m["module"], {})[part] = t
        elif _ORIGINAL not in t.name:  # the base model's own, beside what replaces it
            others[t.name] = t
    return modules, others


class _Patterns:
    """Rank and scale of each module."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        fields = Fields(config, str(path / CONFIG))
        self.where = path / CONFIG
        self.rank, self.alpha = fields.count("r"), fields.number("lora_alpha")
        self.is_stabilized = config.get("use_rslora") is True
        self.ranks, self.alphas = self._table(config, "rank_pattern"), self._table(config, "alpha_pattern")

    def rank_of(self, module: str) -> int:
        """The inner dimension that a module, named as in the file, must have."""
        return int(self._find(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What B @ A is multiplied with."""
        rank = self.rank_of(module)
        return self._find(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.is_stabilized else rank)

    def _table(self, config: Mapping[str, Any], key: str) -> dict[re.Pattern[str], float]:
        """Patterns for the end of a module's name, as PEFT reads them -> value."""
        table = config.get(key) or {}
        if not isinstance(table, dict) or not all(type(v) in (int, float) and 0 < v < _MAX for v in table.values()):
            raise CheckpointError(f"{self.where}: {key} is no object of positive numbers")
        try:
            return {re.compile(rf"(.*\.)?({pattern})"): value for pattern, value in table.items()}
        except re.error as e:
            raise CheckpointError(f"{self.where}: {key} holds what is no regular expression: {e}") from e

    def _find(self, table: Mapping[re.Pattern[str], float], module: str, otherwise: float) -> float:
        """The value of the first pattern that matches."""
        names = {module.removeprefix("base_model.model."), canonical_name(f"{module}.weight").removesuffix(".weight")}
        found = (value for pattern, value in table.items() if any(pattern.fullmatch(name) for name in names))
        return next(found, otherwise)


def _delta(module: str, parts: Mapping[str, SourceTensor], patterns: _Patterns) -> Delta:
    is_embedding = "embedding_A" in parts or "embedding_B" in parts
    names = ("embedding_A", "embedding_B") if is_embedding else ("A", "B")
    if lost := [f"lora_{name}" for name in names if name not in parts]:
        raise CheckpointError(f"missing: {module}.{' and '.join(lost)}")
    a, b = (parts[name] for name in names)
    if len(a.shape) < 2 or len(b.shape) < 2 or math.prod(b.shape) != b.shape[0] * a.shape[0] or 0 in a.shape:
        raise CheckpointError(f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit together")
    if a.shape[0] != patterns.rank_of(module):
        raise CheckpointError(f"{a.name}: rank {a.shape[0]}, but {CONFIG} says {patterns.rank_of(module)}")
    magnitude = parts.get("magnitude_vector")
    if magnitude is not None and is_embedding:
        raise CheckpointError(f"{magnitude.name}: DoRA of an embedding is not supported; merge the adapter with PEFT")
    delta = Delta(a, b, is_embedding, patterns.scale_of(module), magnitude)
    if magnitude is not None:
        if math.prod(magnitude.shape) != delta.n_rows:
            raise CheckpointError(f"{magnitude.name}: shape {list(magnitude.shape)}, but B has {delta.n_rows} rows")
        return replace(delta, magnitude=replace(magnitude, shape=(delta.n_rows, 1)))
    return delta


def _all(tensor: SourceTensor) -> NDArray[np.float32]:
    return to_f32(tensor.read(0, tensor.shape[0])).reshape(tensor.shape[0], -1)
