"""What a conversion is going to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvllama.conversion.output import OutputFile
from pyvllama.conversion.tensor_map import Destination, PlannedTensor
from pyvllama.errors import ConfigError

__all__ = ["PEAK_MEMORY", "ConversionPlan", "model_name", "n_params"]

PEAK_MEMORY = 450 << 20
"""Of a process that writes such files, in bytes, for any size of model: a few slices of rows,
the vocabulary, the programs themselves (tools/bench/convert.py)."""


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write; nothing is written yet, but everything that can be wrong has been looked for."""

    name: str
    text: tuple[OutputFile, ...]
    """The text model, in one file or in shards; none where only the mmproj was asked for."""
    mmproj: OutputFile
    notes: tuple[str, ...] = ()
    """What the user should know of the source."""

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """All files, in the order in which they are written."""
        return (*self.text, self.mmproj)


def model_name(name: str) -> str:
    """`name`, if a file can be called so.

    Raises:
        ConfigError: it cannot.
    """
    if not name or name != Path(name).name or any(c in name for c in '<>:"|?*\\') or not name.isprintable():
        raise ConfigError(f"name = {name!r} cannot be part of a file name")
    return name


def n_params(planned: Sequence[PlannedTensor], file: Destination) -> int:
    """Elements of all tensors of a file."""
    return sum(math.prod(t.shape) for t in planned if t.file is file)
