"""What the tests of `export` share: comparing checkpoints, pairs and directories; changed GGUF files."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_bytes
import numpy as np
import pytest

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


def contents(directory: Path) -> dict[str, bytes]:
    """Everything below a directory, hidden files too."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@contextlib.contextmanager
def leaves_nothing(out_dir: Path, *errors: type[Exception], match: str | None = None) -> Iterator[None]:
    """It fails with one of the errors, and the output directory is as before."""
    out_dir.mkdir(exist_ok=True)
    before = contents(out_dir)
    with pytest.raises(errors, match=match):
        yield
    assert contents(out_dir) == before
    assert not [p for p in out_dir.iterdir() if p.is_dir()]


def changed(source: Path, tmp_path: Path, change: Callable[[gguf_bytes.Gguf], object]) -> Path:
    """A changed copy of a text file or mmproj."""
    return gguf_bytes.rewrite(source, tmp_path / f"changed-{source.name}", change)


def u32(key: str, value: int) -> Callable[[gguf_bytes.Gguf], object]:
    return lambda g: g.set(key, gguf_bytes.U32, struct.pack("<I", value))


def strings(*items: str) -> bytes:
    return gguf_bytes.array(gguf_bytes.STRING, [gguf_bytes.string(x) for x in items])


def load(directory: Path, name: str) -> Any:
    """A JSON file."""
    return json.loads((directory / name).read_text(encoding="utf-8"))
