"""The blobs of an Ollama model as our pair of files: renamed, renumbered, rows moved, nothing requantized.

The plan is that of a checkpoint (`tensor_map.plan`); where a checkpoint's tensor is asked for, a blob's is read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pyvllama.config import MllamaConfig
from pyvllama.conversion.gguf_tensor import gguf_tensor
from pyvllama.conversion.ollama_config import ARCHITECTURE
from pyvllama.conversion.ollama_store import Blob
from pyvllama.conversion.ollama_tensors import (
    KNOWN_BLOBS,
    GateKind,
    Generation,
    gate_kind,
    invert_tanh,
    ollama_name,
    ollama_names,
    rope_heads,
    unpermute,
)
from pyvllama.conversion.output import OutputTensor
from pyvllama.conversion.policy import MMPROJ_TYPES, TEXT_TYPES, FileType, Role
from pyvllama.conversion.tensor_map import EMBED_TOKENS, Destination, PlannedTensor, plan
from pyvllama.conversion.transforms import Index, identity
from pyvllama.conversion.typed_rows import constant, typed_rows
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile, TensorInfo

__all__ = ["OllamaFiles", "OllamaTensors"]

_ROPE_FREQS = "rope_freqs.weight"
_POSITION_GATE, _TILE_GATE = "v.position_embd.gate", "v.tile_position_embd.gate"
_GATE_SUM_ERROR = 1e-3
"""position gate + tile gate = 1, up to the rounding of F16."""

_SELF_QK = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
_GUESSED = 1024
"""LLAMA_FTYPE_GUESSED, for a file type that our tables do not know."""


@dataclass(frozen=True)
class OllamaFiles:
    """The GGUF blobs of a model: its text and its vision tower, which are one file since May 2025."""

    text: GGUFFile
    vision: GGUFFile
    generation: Generation
    where: str
    """For messages."""

    @classmethod
    def open(cls, model: Blob, projector: Blob | None, name: str) -> OllamaFiles:
        """Read the directories and find out the generation.

        Raises:
            ConfigError: another architecture, or a G2 file, which was converted with faults.
            FormatError: a file is damaged.
        """
        text = GGUFFile(model.path)
        vision = text if projector is None else GGUFFile(projector.path)
        for file in {id(file): file for file in (text, vision)}.values():
            if (found := file.metadata.get("general.architecture")) != ARCHITECTURE:
                raise ConfigError(
                    f"{name} is of the architecture {found!r:.80}, not {ARCHITECTURE!r} (Llama 3.2 Vision): "
                    f"pyvllama imports no other model ({file.path})"
                )
        where = f"{name} ({text.path.name[:19]})"
        if "v.patch_embd.weight" not in vision.tensors:
            raise FormatError(f"{where} has no vision tower: `ollama pull` it again")
        return cls(text, vision, _generation(model, text, vision, name), where)

    @cached_property
    def tensors(self) -> dict[str, GGUFFile]:
        """Name of each tensor -> its file."""
        return {name: file for file in (self.vision, self.text) for name in file.tensors}

    def n_rows(self, name: str) -> int:
        """Rows of one of the text's tensors; 0 without it."""
        return self.text.tensors[name].n_rows if name in self.text.tensors else 0


def _generation(model: Blob, text: GGUFFile, vision: GGUFFile, name: str) -> Generation:
    """By the digest, by names, and then by what G2 did wrong: the gates of its layers have no tanh applied."""
    if known := KNOWN_BLOBS.get(model.digest):
        return known
    if "v.blk.0.ln1.weight" in vision.tensors:
        return Generation.G1
    gates = [t for t in vision.tensors if t.startswith("v.global.blk.") and t.endswith(("attn_gate", "ffn_gate"))]
    if any(np.abs(vision.f32(gate)).max() > 1 for gate in gates):
        raise ConfigError(_BROKEN.format(name=name, why="a gate of its vision tower is above 1"))
    if "tokenizer.ggml.eos_token_ids" not in text.metadata:
        raise ConfigError(_BROKEN.format(name=name, why="it has no tokenizer.ggml.eos_token_ids"))
    return Generation.G3


_BROKEN = (
    "{name} seems to come from the converter that Ollama had for some days in May 2025 ({why}), whose files are wrong: "
    "`ollama pull` it again, or convert the checkpoint it was made of"
)


@dataclass
class OllamaTensors:
    """What becomes of each tensor of the blobs."""

    files: OllamaFiles
    config: MllamaConfig
    interleaved: bool
    """Whether q and k rows of the cross-attention stand as for rotary embeddings."""
    filler_token: int
    planned: list[PlannedTensor] = field(init=False)
    names: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.planned = plan(self.config, self.filler_token)
        self.names = self._names()
        self._check()

    def outputs(self, destination: Destination) -> tuple[OutputTensor, ...]:
        """The tensors of one of our files, in its order.

        Raises:
            FormatError: values that cannot be right.
        """
        tensors = [self._output(t) for t in self.planned if t.file is destination]
        if destination is Destination.TEXT:
            factors = self._values(_ROPE_FREQS)
            spec = TensorSpec(_ROPE_FREQS, factors.shape, "f32")
            tensors.append(OutputTensor(spec, self._origin(_ROPE_FREQS), constant(factors)))
        return tuple(tensors)

    def pairing_hash(self) -> str:
        """What `gguf_file.pairing_hash` will compute of the text file."""
        norms = [t for t in self.planned if t.file is Destination.TEXT and t.name.endswith("norm.weight")]
        layers = [t for t in norms if t.name.startswith("blk.")]
        order = sorted(layers, key=lambda t: (int(t.name.split(".")[1]), t.name))  # attn_norm before ffn_norm
        digest = hashlib.sha256()
        for t in [*order, next(t for t in norms if t.name == "output_norm.weight")]:
            digest.update(self._values(self.names[t.hf]).astype("<f4").tobytes())
        return digest.hexdigest()

    def tower_type(self) -> FileType:
        """The type that most bytes of the tower's matrices are of, as the mmproj's name tells it."""
        size: Counter[str] = Counter()
        for t in self.planned:
            if t.role is Role.TOWER:
                info = self._info(self.names[t.hf])
                size[info.type] += info.n_bytes
        base = size.most_common(1)[0][0]
        known = next((t for t in (*MMPROJ_TYPES.values(), *TEXT_TYPES.values()) if t.base == base), None)
        return known or FileType(base.lower(), _GUESSED, base)

    def text_type(self) -> FileType:
        """The file type that the text's blob states."""
        number = self.files.text.metadata.get("general.file_type")
        known = next((t for t in TEXT_TYPES.values() if t.number == number), None)
        base = self._info("output.weight" if "output.weight" in self.files.tensors else "token_embd.weight").type
        return known or FileType(base.lower(), number if type(number) is int and number >= 0 else _GUESSED, base)

    def _names(self) -> dict[str, str]:
        """Hugging Face's name -> the blob's, for all planned tensors."""
        table = ollama_names(self.files.generation)
        names = {t.hf: ollama_name(t.hf, table) for t in self.planned}
        tensors = self.files.tensors
        for t in self.planned:  # the names of the two halves of an MLP are swapped in G1; shapes say it for certain
            if t.hf.startswith("vision_model.") and t.hf.endswith("mlp.fc1.weight"):
                other = t.hf.replace("fc1", "fc2")
                mine, file = names[t.hf], tensors.get(names[t.hf])
                if file is not None and file.tensors[mine].shape != t.shape and t.shape[0] != t.shape[1]:
                    for kind in ("weight", "bias"):
                        a, b = t.hf.replace("weight", kind), other.replace("weight", kind)
                        names[a], names[b] = names[b], names[a]
        return names

    def _check(self) -> None:
        """Every tensor is there, of its shape, and no other."""
        tensors = self.files.tensors
        shapes = {self.names[t.hf]: t.hf_shape for t in self.planned}
        shapes |= {_ROPE_FREQS: (self.config.text.head_dim // 2,), _POSITION_GATE: (1,)}
        missing = [name for name in shapes if name not in tensors]
        unknown = [name for name in tensors if name not in shapes]
        if missing or unknown:
            listed = "; ".join(
                f"{what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            )
            raise FormatError(
                f"{self.files.where} was badly converted, as happens to Ollama with checkpoints that transformers 5 "
                f"has saved ({listed}): convert the checkpoint itself with pyvllama"
            )
        for name, shape in shapes.items():
            if (found := self._info(name).shape) != shape:
                raise FormatError(f"{self.files.where}: {name} has the shape {found}, not {shape}")
        total = float(self._values(_POSITION_GATE)[0]) + float(self._values(_TILE_GATE)[0])
        if not abs(total - 1) <= _GATE_SUM_ERROR:
            raise FormatError(f"{self.files.where}: {_POSITION_GATE} + {_TILE_GATE} is {total}, not 1: it is damaged")

    def _info(self, name: str) -> TensorInfo:
        return self.files.tensors[name].tensors[name]

    def _origin(self, name: str) -> str:
        return f"{self.files.tensors[name].path.name[:19]}: {name}"

    def _values(self, name: str) -> NDArray[np.float32]:
        """A small tensor as float32.

        Raises:
            FormatError: values that are not finite.
        """
        values = self.files.tensors[name].f32(name)
        if not np.isfinite(values).all():
            raise FormatError(f"{self.files.where}: {name} holds numbers that are not finite: it is damaged")
        return values

    def _output(self, t: PlannedTensor) -> OutputTensor:
        name = self.names[t.hf]
        origin = self._origin(name)
        source = gguf_tensor(self.files.tensors[name], name)
        if t.hf == EMBED_TOKENS and len(t.shape) == 1:
            spec = TensorSpec(t.name, t.shape, "f32")
            return OutputTensor(spec, origin, typed_rows(source, t.index, spec))
        if t.role is Role.EXACT:
            values = self._gate(name) if gate_kind(t.hf) is GateKind.TANH else self._values(name)
            return OutputTensor(TensorSpec(t.name, t.shape, "f32"), origin, constant(values))
        spec = TensorSpec(t.name, t.shape, source.type)
        return OutputTensor(spec, origin, typed_rows(source, self._rows(t), spec))

    def _gate(self, name: str) -> NDArray[np.float32]:
        value = self._values(name)[0]
        if abs(value) > 1:
            raise FormatError(f"{self.files.where}: {name} is {value}, which is no tanh: it is damaged")
        return np.array([invert_tanh(value)], np.float32)

    def _rows(self, t: PlannedTensor) -> Index:
        """Which rows of the blob's tensor make ours."""
        text, vision = self.config.text, self.config.vision
        if t.hf.endswith(_SELF_QK) and t.hf.startswith("language_model."):  # they stand as llama.cpp wants them
            return identity(t.shape[0])
        heads = (text.num_attention_heads, text.num_key_value_heads, vision.attention_heads)
        n_head = rope_heads(t.hf, *heads, self.files.generation)
        if n_head == 0 or (t.hf.startswith("language_model.") and not self.interleaved):
            return t.index
        return unpermute(t.shape[0], n_head)
