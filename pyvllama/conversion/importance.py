"""Importance matrices as the quantizers use them: looked up by GGUF name, checked against the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.imatrix_file import ImportanceMatrix
from pyvllama.conversion.output import OutputFile
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import ConfigError

__all__ = ["Importance", "read_importance"]

_NO_USE_FOR_IT = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Importance:
    """One or several importance matrices that a pair is quantized with."""

    matrix: ImportanceMatrix
    paths: tuple[Path, ...]

    def of(self, spec: TensorSpec) -> NDArray[np.float32] | None:
        """How much each column of a tensor matters: float32 [n_per_row]; None if that was not measured.

        Raises:
            ConfigError: it was measured on a tensor of another shape.
        """
        values = self.matrix.values(spec.name)
        if values is not None and len(values) != spec.shape[-1]:
            raise ConfigError(
                f"the importance matrix has {len(values)} columns for {spec.name}, which has {spec.shape[-1]}: it was "
                f"made with another model ({', '.join(map(str, self.paths))})"
            )
        return values

    def note(self, files: Sequence[OutputFile]) -> str | None:
        """What the user should know, if quantized matrices were not measured (embedding and output never are)."""
        matrices = [
            t.spec.name
            for file in files
            for t in file.tensors
            if t.spec.type not in _NO_USE_FOR_IT and t.spec.name not in ("token_embd.weight", "output.weight")
        ]
        unknown = [name for name in matrices if self.matrix.values(name) is None]
        if not unknown:
            return None
        return (
            f"the importance matrix has nothing on {len(unknown)} of {len(matrices)} matrices ({', '.join(unknown[:3])}"
            f"{' ...' if len(unknown) > 3 else ''}): they are quantized without. `pyvllama imatrix` writes two files, "
            "one for the text model and one for the mmproj"
        )

    def metadata(self) -> dict[str, tuple[str, Any]]:
        """The keys in which llama-quantize notes what it was given."""
        return {
            "quantize.imatrix.file": ("str", ", ".join(path.name for path in self.paths)),
            "quantize.imatrix.entries_count": ("u32", len(self.matrix)),
        }


def read_importance(imatrix: str | Path | Sequence[str | Path]) -> Importance | None:
    """Read importance matrices; None if there are none.

    Raises:
        ModelNotFound, FormatError: a file is not there or damaged.
    """
    paths = [Path(p) for p in ((imatrix,) if isinstance(imatrix, str | Path) else imatrix)]
    return Importance(ImportanceMatrix.read(*paths), tuple(paths)) if paths else None
