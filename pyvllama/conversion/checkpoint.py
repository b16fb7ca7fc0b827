"""A Hugging Face checkpoint directory: its JSON files, and its tensors without loading them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvllama.conversion.bitsandbytes import dequantized
from pyvllama.conversion.prefixes import LORA_PART
from pyvllama.conversion.safetensors_reader import read_safetensors, unsupported_type
from pyvllama.conversion.source_tensor import DTYPES, INTEGERS, SourceTensor, Tensor, to_f32
from pyvllama.conversion.tensor_map import canonical_name, is_ignored
from pyvllama.conversion.text_files import json_object, listing, read_text
from pyvllama.errors import CheckpointError, ModelNotFound

if TYPE_CHECKING:
    from pyvllama.conversion.base_files import BaseFiles, BorrowedFile

__all__ = ["DTYPES", "Checkpoint", "SourceTensor", "Tensor", "json_object", "listing", "read_text", "to_f32"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_COMPARED_BYTES = 1 << 24
_OR_BASE = "; or name a checkpoint that has it, such as the model it was made from, as the base (--base)"
_INTEGERS = {ours: theirs for theirs, (ours, _) in INTEGERS.items()}


class Checkpoint:
    """A checkpoint directory, opened and found complete in itself.

    Attributes:
        path: the directory.
        tensors: canonical (Hub) name -> Tensor; what bitsandbytes quantized has its values again.
        notes: what whoever converts this should know, a sentence each.

    Args:
        path: the directory.
        base: another checkpoint, whose description files stand in for those that are missing here.

    Raises:
        ModelNotFound: no such directory, or no config.json in it.
        CheckpointError: missing or damaged shards, unreadable JSON, tensor types that cannot be converted.
    """

    config_file = "config.json"
    """Where the sizes come from; for messages."""
    tensors: Mapping[str, Tensor]

    def __init__(self, path: str | Path, base: BaseFiles | None = None) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.base = base
        self.borrowed: Mapping[str, BorrowedFile] = {}
        if not self.path.is_dir():
            raise ModelNotFound(f"{self.path} is no directory; expected one that holds an HF checkpoint")
        if base is not None:
            self.borrowed = base.missing_in(self)
            for file in self.borrowed.values():
                self.notes.append(f"{file.what} is taken from {base.name}")
        if self.optional_text("config.json") is None:
            raise ModelNotFound(f"{self.path} holds no config.json: {_no_config(self.path, base)}")
        self.tensors = self._open_shards()

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the directory, or of the base where the directory lacks it.

        Raises:
            CheckpointError: the file is missing, or holds no JSON object.
        """
        if (found := self.optional_json(name)) is None:
            raise CheckpointError(
                f"{self.path} lacks {name}"
                + (f", and {self.base.name} has none to take its place" if self.base else "")
                + f"; copy it from where the checkpoint came from{'' if self.base else _OR_BASE}"
            )
        return found

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """Same; None if there is no such file."""
        text = self.optional_text(name)
        if text is None:
            return None
        borrowed = self.borrowed.get(name)
        return json_object(self.path / name if borrowed is None else borrowed.path, text)

    def optional_text(self, name: str) -> str | None:
        """A text file of the directory, or of the base where the directory lacks it; or None."""
        if name in self.borrowed:
            return self.borrowed[name].text
        path = self.path / name
        return read_text(path) if path.is_file() else None

    def check(self, expected: Mapping[str, Sequence[int]], unused: frozenset[str] = frozenset()) -> None:
        """Compare the tensors with what the model must have.

        Args:
            expected: canonical name -> shape.
            unused: canonical names that may be there and are left out.

        Raises:
            CheckpointError: one message with all missing, all unknown and all wrongly shaped tensors.
        """
        found = {name for name in self.tensors if not is_ignored(name)}
        problems = [f"missing: {name}" for name in expected if name not in found]
        problems += [f"unknown: {self.tensors[name].name}" for name in sorted(found - set(expected) - unused)]
        problems += [
            f"{t.name}: shape {list(t.shape)}, but {self.config_file} asks for {list(shape)}"
            for name, shape in expected.items()
            if (t := self.tensors.get(name)) is not None and t.shape != tuple(shape)
        ]
        if problems:
            raise CheckpointError(
                f"{self.path} does not hold the tensors of its {self.config_file}:\n{listing(problems)}"
            )

    def _open_shards(self) -> dict[str, Tensor]:
        found: dict[str, SourceTensor] = {}
        shards, indexed = self._shards()
        for shard in shards:
            for tensor in read_safetensors(self.path / shard):
                name = canonical_name(tensor.name)
                if name not in found:
                    found[name] = tensor
                elif not _are_equal(tensor, other := found[name]):
                    raise CheckpointError(
                        f"{self.path}: {tensor.name} in {shard} and {other.name} in {other.path.name} are one tensor, "
                        "but their values differ"
                    )
        lost = [f"{name} (in {shard})" for name, shard in indexed.items() if canonical_name(name) not in found]
        if lost:
            raise CheckpointError(f"{self.path / _INDEX} lists tensors that its shards do not hold:\n{listing(lost)}")
        if unmerged := [t.name for name, t in found.items() if LORA_PART.search(name)]:
            raise CheckpointError(
                f"{self.path} holds an adapter that has not been merged. Save the model after merge_and_unload(), "
                "or save the adapter alone (save_pretrained) and convert the base model with it: "
                f"pyvllama convert BASE --lora ADAPTER. Its tensors:\n{listing(unmerged, 6)}"
            )
        tensors = dequantized(found)
        for name, left in tensors.items():
            if left.type in _INTEGERS and not is_ignored(name):
                raise unsupported_type(left.path, left.name, _INTEGERS[left.type])
        return tensors

    def _shards(self) -> tuple[list[str], dict[str, str]]:
        """File names of the shards, and the index's tensor -> shard (empty without an index)."""
        indexed: dict[str, str] = {}
        if (index := self.optional_json(_INDEX)) is not None:
            indexed = index.get("weight_map", {})
            if not isinstance(indexed, dict) or not all(isinstance(x, str) for x in indexed.values()) or not indexed:
                raise CheckpointError(f"{self.path / _INDEX}: weight_map is no object of file names")
            shards = sorted(set(indexed.values()))
        elif (self.path / _SINGLE).is_file():
            shards = [_SINGLE]
        else:
            shards = self._numbered_shards()
        if outside := [s for s in shards if Path(s).name != s or s in (".", "..")]:
            raise CheckpointError(f"{self.path / _INDEX} names files outside of the directory: {', '.join(outside)}")
        if missing := [s for s in shards if not (self.path / s).is_file()]:
            raise CheckpointError(
                f"{self.path} lacks {len(missing)} of {len(shards)} shards (interrupted download?):\n{listing(missing)}"
            )
        return shards, indexed

    def _numbered_shards(self) -> list[str]:
        found = sorted(p.name for p in self.path.glob("*.safetensors"))
        totals = {int(m[2]) for name in found if (m := _SHARD.fullmatch(name))}
        if len(totals) != 1:
            hint = " (pytorch_model*.bin is not read; save as safetensors)" if [*self.path.glob("*.bin")] else ""
            raise CheckpointError(f"{self.path} holds neither {_INDEX} nor {_SINGLE} nor numbered shards{hint}")
        total = totals.pop()
        return [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]


def _no_config(path: Path, base: BaseFiles | None) -> str:
    if (path / "adapter_config.json").is_file():
        return (
            "it holds a LoRA adapter. Convert its base model with it, pyvllama convert BASE --lora ADAPTER, "
            "or the adapter alone into a LoRA GGUF, pyvllama convert ADAPTER"
        )
    if base is not None:
        return f"nor does {base.name}"
    return f"this is no HF checkpoint{_OR_BASE}"


def _are_equal(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors hold the same bytes (tied weights, saved under two names)."""
    if (a.type, a.shape) != (b.type, b.shape):
        return False
    if (a.path, a.offset) == (b.path, b.offset) or a.n_per_row == 0:
        return True
    step = max(1, _COMPARED_BYTES // (4 * a.n_per_row))
    return all(
        np.array_equal(a.read(i, n).view(np.uint8), b.read(i, n).view(np.uint8))
        for i in range(0, a.n_rows, step)
        if (n := min(step, a.n_rows - i))
    )
