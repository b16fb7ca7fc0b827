"""Placeholder of the reader that another branch brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImportanceMatrix"]


class ImportanceMatrix:
    """See its branch."""

    @classmethod
    def read(cls, *paths: Path) -> ImportanceMatrix:
        """See its branch."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def values(self, name: str) -> NDArray[np.float32] | None:
        """See its branch."""
        raise NotImplementedError
