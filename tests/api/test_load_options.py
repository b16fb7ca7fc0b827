"""Options of `load` that decide where the text weights lie, as llama.cpp says itself what it does."""

import logging

import numpy as np
import pytest
from talk import text_of, user

import pyvllama
from pyvllama._runtime import native
from pyvllama.gguf_file import GGUFFile
from pyvllama.locate import pocket_pair


def loading_lines(caplog, **options):
    """What llama.cpp logs while the pocket model is loaded."""
    with caplog.at_level(logging.DEBUG, "pyvllama.llama_cpp"):
        caplog.clear()
        pyvllama.load(n_ctx=256, n_threads=1, **options).close()
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "pyvllama.llama_cpp")


@pytest.mark.parametrize(("use_mmap", "mode"), [(True, "mmap"), (False, "none")])
def test_use_mmap(caplog, use_mmap, mode):
    assert f"load_mode = {mode})" in loading_lines(caplog, use_mmap=use_mmap)


@pytest.mark.parametrize("repack", [True, False])
def test_repack(caplog, repack):
    tensors = GGUFFile(pocket_pair().text).tensors.values()
    if not any(len(t.shape) == 2 and native.cpu_repacks(t.type, t.shape[1], t.shape[0]) for t in tensors):
        pytest.skip("this CPU has no layout of its own for these types")
    assert ("CPU_REPACK model buffer size" in loading_lines(caplog, repack=repack)) == repack


@pytest.mark.parametrize("options", [{"use_mmap": False}, {"repack": False}, {"use_mmap": False, "repack": False}])
def test_where_they_lie_changes_no_answer(samples, options):
    sample = samples[0]
    with pyvllama.load(n_threads=1, **options) as llm:
        answer = llm.chat([user(sample["path"], sample["qa"][0]["question"])], temperature=0)
    assert text_of(answer) == sample["qa"][0]["expected"]


def test_mapped_and_read_weights_are_the_same_bit_for_bit(tiny_pair):
    found = []
    pair = tiny_pair("base", "q4_k_m")
    for use_mmap in (True, False):
        with pyvllama.load(pair.text, pair.mmproj, n_ctx=64, n_threads=1, use_mmap=use_mmap) as llm:
            found.append(llm.logits([user("hello")]))
    np.testing.assert_array_equal(found[0], found[1])
