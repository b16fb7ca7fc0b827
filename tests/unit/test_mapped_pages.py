"""Pages of mapped files that are not needed any more do not stay with the process."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from resident import needs_smaps, resident_bytes

import pyvllama
from pyvllama._runtime import native
from pyvllama.image.tiling import preprocess
from pyvllama.locate import pocket_pair

PAGE = mmap.PAGESIZE
N_PAGES = 64


@needs_smaps
def test_pages_are_given_back_and_stay_readable(tmp_path):
    path = tmp_path / "weights (of a model)"
    data = np.random.default_rng(0).integers(0, 256, N_PAGES * PAGE, np.uint8)
    data.tofile(path)
    first, second = (np.memmap(path, np.uint8, "r") for _ in range(2))
    assert np.array_equal(first, data) and np.array_equal(second, data)
    assert resident_bytes(path) == 2 * data.nbytes
    assert native.drop_mapped_pages(path) == 2 * data.nbytes, "whoever mapped it"
    assert resident_bytes(path) == 0
    assert np.array_equal(first, data) and np.array_equal(second, data)


@needs_smaps
def test_mappings_that_can_be_written_are_left_alone(tmp_path):
    path = tmp_path / "a"
    np.zeros(N_PAGES * PAGE, np.uint8).tofile(path)
    private, shared = np.memmap(path, np.uint8, "c"), np.memmap(path, np.uint8, "r+")
    private[:], shared[:] = 1, 2
    assert native.drop_mapped_pages(path) == 0
    assert private.all() and private.max() == 1, "what was written is in no file"


def test_files_that_are_not_mapped(tmp_path):
    assert native.drop_mapped_pages(tmp_path / "none") == 0
    (tmp_path / "a").write_bytes(b"a")
    assert native.drop_mapped_pages(tmp_path / "a") == 0


@needs_smaps
def test_weights_that_were_copied_are_not_resident_twice():
    """In a process of its own: other tests' models may map the same files."""
    path = Path(__file__)
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(path.parents[1])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "checked\n"


def check_weights_that_were_copied():
    """llama.cpp copies most weights of the text model; the tower's are read where they lie, once a picture."""
    pair = pocket_pair()
    with pyvllama.load(n_ctx=256, n_threads=1) as llm:
        assert resident_bytes(pair.text) < pair.text.stat().st_size / 4
        assert resident_bytes(pair.mmproj) < pair.mmproj.stat().st_size / 4
        mmproj, size = llm.model.mmproj, 2 * llm.model.preprocessor.tile_size
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        tiles = preprocess(Image.fromarray(noise), llm.model.preprocessor)
        _, states, _ = mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id, want_states=True)
        assert resident_bytes(pair.mmproj) < pair.mmproj.stat().st_size / 4
        _, again, _ = mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id, want_states=True)
        assert np.array_equal(states, again)


if __name__ == "__main__":
    check_weights_that_were_copied()
    print("checked")
