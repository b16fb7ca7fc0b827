"""What the tests of `export` share: comparing checkpoints tensor by tensor, and pairs byte by byte."""

from pathlib import Path

import numpy as np

from pyvllama.conversion import convert, export
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.types import Pair


def assert_same_tensors(ours: Path, source: Path) -> None:
    """Same names (of either layout), same types, same shapes, same bits."""
    a, b = Checkpoint(ours), Checkpoint(source)
    assert a.tensors.keys() == b.tensors.keys()
    for name, t in b.tensors.items():
        got = a.tensors[name]
        assert (got.type, got.shape) == (t.type, t.shape), name
        rows = np.arange(t.n_rows)
        assert np.array_equal(bits(got.rows(rows)), bits(t.rows(rows))), name


def bits(values: np.ndarray) -> np.ndarray:
    """Numbers that are equal only if they are the same: -0.0 is not 0.0."""
    return np.ascontiguousarray(values).view(np.uint8)


def assert_same_pair(ours: Pair, expected: Pair) -> None:
    """Both files byte by byte."""
    for a, b in ((ours.text, expected.text), (ours.mmproj, expected.mmproj)):
        assert a.read_bytes() == b.read_bytes(), b.name


def there_and_back(checkpoint: Path, out: Path, kind: str, *, mmproj_type: str | None = None) -> Path:
    """Convert, export, convert again: the pairs must be equal. Returns the exported checkpoint."""
    types = {"text_type": kind, "mmproj_type": mmproj_type or kind, "name": "model"}
    pair = convert(checkpoint, out / "pair", **types)
    exported = export(pair.text, out / "exported")
    assert exported == out / "exported"
    assert_same_pair(convert(exported, out / "again", **types), pair)
    return exported
