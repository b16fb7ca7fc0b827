"""What tells a model's files apart, and what does not."""

import shutil

import numpy as np
import pytest

from pyvllama.fingerprint import weights_fingerprint
from pyvllama.gguf_file import GGUFFile


def fingerprint(path, prefix="clip."):
    return weights_fingerprint(GGUFFile(path), prefix)


def test_the_name_and_place_do_not_count(tiny_pair, tmp_path):
    path = tiny_pair("small").mmproj
    assert fingerprint(shutil.copy(path, tmp_path / "other.gguf")) == fingerprint(path)


def test_models_and_types_differ(tiny_pair):
    pairs = [("small", {}), ("two_tiles", {}), ("base", {}), ("base", {"mmproj_type": "f16"})]
    found = {fingerprint(tiny_pair(name, **options).mmproj) for name, options in pairs}
    assert len(found) == len(pairs)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_any_small_tensor_and_every_end_of_a_large_one_count(tiny_pair, tmp_path, kind):
    source = tiny_pair("base").mmproj
    before = fingerprint(source)
    file = GGUFFile(source)
    sized = {info.n_bytes: info for info in file.tensors.values()}
    info = sized[min(sized) if kind == "small" else max(sized)]
    for at in (0, info.n_bytes - 1):
        raw = bytearray(source.read_bytes())
        raw[info.offset + at] ^= 1
        (tmp_path / "changed.gguf").write_bytes(raw)
        assert fingerprint(tmp_path / "changed.gguf") != before


def test_numbers_of_the_model_count_and_its_words_do_not(tiny_pair, tmp_path, monkeypatch):
    file = GGUFFile(tiny_pair("small").mmproj)
    before = weights_fingerprint(file, "clip.")
    monkeypatch.setitem(file.metadata, "general.name", "Somebody's")
    assert weights_fingerprint(file, "clip.") == before
    monkeypatch.setitem(file.metadata, "clip.vision.attention.layer_norm_epsilon", 1e-3)
    assert weights_fingerprint(file, "clip.") != before


def test_a_retrained_large_matrix_is_seen(monkeypatch):
    """A change of all values in the third quarter of a matrix of 4 MiB meets a sample."""

    class File:
        metadata: dict[str, object] = {}  # noqa: RUF012

        def __init__(self, data):
            self.data = data
            self.tensors = {"a": type("Info", (), {"type": "f32", "shape": (1024, 1024)})}

        def raw(self, name):
            return self.data

    data = np.zeros((1024, 4096), np.uint8)
    changed = data.copy()
    changed[512:768] = 1
    assert weights_fingerprint(File(data), "") != weights_fingerprint(File(changed), "")
