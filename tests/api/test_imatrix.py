"""Importance matrices of the pocket model: what is counted, what is written, and that they help."""

import json

import numpy as np
import pytest
from chats import write_chats, write_text_chats

import pyvllama
from pyvllama.conversion.imatrix_file import ImportanceMatrix
from pyvllama.errors import Cancelled, ConfigError, ContextOverflow, PromptError
from pyvllama.evaluation import evaluate
from pyvllama.imatrix import collect_imatrix
from pyvllama.locate import locate

OPTIONS = {"n_ctx": 512, "n_threads": 1}


@pytest.fixture(scope="module")
def reference(pocket_pairs):
    return pocket_pairs("bf16", "bf16").text


@pytest.fixture(scope="module")
def few(tmp_path_factory, samples):
    """Two pictures with all their questions."""
    return write_chats(tmp_path_factory.mktemp("chats") / "few.jsonl", samples[:2])


def test_the_two_files(reference, few, samples, tmp_path):
    """Every matrix is in them; each picture counts once, however many chats show it."""
    done = collect_imatrix(reference, [few], tmp_path / "new", **OPTIONS)
    assert done.text == tmp_path / "new" / "imatrix-pocket-vllama.gguf"
    assert done.mmproj == tmp_path / "new" / "imatrix-mmproj-pocket-vllama.gguf"
    assert sorted(p.name for p in done.text.parent.iterdir()) == [done.mmproj.name, done.text.name]
    text, mmproj = ImportanceMatrix.read(done.text), ImportanceMatrix.read(done.mmproj)
    assert text.datasets == mmproj.datasets == ("few.jsonl",)
    self_layers = {f"blk.{i}.{part}.weight" for i in range(5) for part in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    assert set(text.entries) == self_layers
    assert len(mmproj.entries) == 6 * 6 + 1 + 3 * 7  # tower, projector, cross layers
    assert len(text) + len(mmproj) == done.n_weights
    assert {e.n_rows for e in text.entries.values()} == {done.n_tokens}
    with pyvllama.load(reference, n_threads=1) as llm:
        n_positions = sum(len(llm.encode_image(s["path"]).reshape(-1, 256)) for s in samples[:2])
    for name, entry in mmproj.entries.items():
        if name.startswith(("v.", "mm.")) or ".attn_k." in name or ".attn_v." in name:
            assert entry.n_rows == n_positions, name
        else:  # text rows that see a picture: not BOS and the header before it
            assert done.n_tokens * 0.5 < entry.n_rows < done.n_tokens, name
    assert (done.n_chats, done.n_images, done.n_chunks) == (len(samples[0]["qa"]) + len(samples[1]["qa"]), 2, 0)


def test_the_pair_is_still_found_beside_them(reference, few, tmp_path):
    for path in (reference, locate(reference).mmproj):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    collect_imatrix(tmp_path, [few], tmp_path, **OPTIONS)
    assert locate(tmp_path).text == tmp_path / reference.name
    assert locate(tmp_path / reference.name).mmproj.name.startswith("mmproj-")
    with pytest.raises(ConfigError, match=r"exists? already"):
        collect_imatrix(tmp_path, [few], tmp_path, **OPTIONS)


def test_texts_and_open_chats(reference, samples, tmp_path):
    """Open chats are answered, and the answers count; without pictures there is no second file."""
    text = tmp_path / "a.txt"
    text.write_text("The ring is yellow and the star is blue. " * 30)
    chats = write_text_chats(tmp_path / "b.jsonl", 2)
    done = collect_imatrix(reference, [text, chats], tmp_path / "1", chunk_tokens=64, name="x", **OPTIONS)
    assert done.mmproj is None and done.text.name == "imatrix-x.gguf"
    assert done.n_chunks > 3 and done.n_chats == 2 and done.n_images == 0
    matrix = ImportanceMatrix.read(done.text)
    assert matrix.chunk_size == 64 and matrix.datasets == ("a.txt", "b.jsonl")

    open_chats = write_chats(tmp_path / "open.jsonl", samples[:1], answers=False)
    read = collect_imatrix(reference, [open_chats], tmp_path / "2", max_tokens=0, **OPTIONS)
    answered = collect_imatrix(reference, [open_chats], tmp_path / "3", max_tokens=5, **OPTIONS)
    n_chats = len(samples[0]["qa"])
    assert read.n_tokens < answered.n_tokens <= read.n_tokens + 4 * n_chats  # the last one is not read any more
    rows = {e.n_rows for e in ImportanceMatrix.read(answered.text).entries.values()}
    assert rows == {answered.n_tokens}


def test_nothing_is_written_when_something_is_wrong(reference, few, tmp_path):
    out = tmp_path / "out"
    seen = []

    def stop(fraction, what):
        seen.append(fraction)
        return fraction < 0.4

    with pytest.raises(Cancelled):
        collect_imatrix(reference, [few], out, progress=stop, **OPTIONS)
    assert seen == sorted(seen) and len(seen) > 2

    def interrupt(fraction, what):
        if fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_imatrix(reference, [few], out, progress=interrupt, **OPTIONS)
    bad = few.parent / "bad.jsonl"
    bad.write_text(few.read_text() + '{"messages": []}\n')
    with pytest.raises(PromptError, match=r"bad\.jsonl:\d+: messages is empty"):
        collect_imatrix(reference, [bad], out, **OPTIONS)
    bad.write_text(few.read_text() + json.dumps([{"role": "user", "content": "a star " * 400}]))
    with pytest.raises(ContextOverflow, match=r"bad\.jsonl:\d+: the prompt has"):
        collect_imatrix(reference, [bad], out, **OPTIONS)
    with pytest.raises(ConfigError, match="chunk_tokens must be between 16 and n_ctx = 512, not 9"):
        collect_imatrix(reference, [few], out, chunk_tokens=9, **OPTIONS)
    with pytest.raises(ConfigError, match="max_tokens"):
        collect_imatrix(reference, [few], out, max_tokens=-1, **OPTIONS)
    assert not out.exists() or not list(out.iterdir())


def test_it_lowers_the_divergence(reference, pocket_checkpoint, samples, tmp_path):
    """Text and cross-attention layers in Q2_K; calibrated on the even pictures, judged on the odd ones.

    The median: most answers are certain, so that a few tokens make up the mean. Measured: 0.66 of the median without a
    matrix; over 200 new chats 0.65, and 0.55 [0.53, 0.58] of the geometric mean.
    """
    calibration = write_chats(tmp_path / "calibration.jsonl", samples[::2])
    held_out = write_chats(tmp_path / "held-out.jsonl", samples[1::2])
    done = collect_imatrix(reference, [calibration], tmp_path / "imatrix", **OPTIONS)
    low = {"text_type": "q8_0", "mmproj_type": "q8_0", "tensor_types": ["^(blk|xattn).*=q2_K"]}
    medians = {}
    for name, matrices in (("without", ()), ("with", (done.text, done.mmproj))):
        (tmp_path / name).mkdir()
        pyvllama.convert(pocket_checkpoint, tmp_path / name, imatrix=matrices, **low)
        result = evaluate(tmp_path / name, reference, [held_out], **OPTIONS)
        medians[name] = result.all.kld_median
        assert result.all.n_tokens > 300
    assert 0 < medians["with"] < 0.85 * medians["without"], medians


def test_collecting_is_repeatable(reference, few, tmp_path):
    files = [collect_imatrix(reference, [few], tmp_path / str(i), **OPTIONS) for i in range(2)]
    first, second = (ImportanceMatrix.read(f.text, f.mmproj) for f in files)
    for name, entry in first.entries.items():
        np.testing.assert_array_equal(entry.sums, second.entries[name].sums)
