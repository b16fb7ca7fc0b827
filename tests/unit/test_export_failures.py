"""Exports that are refused or fail: each with a named error, and none leaves anything behind."""

import dataclasses
import errno
import os
import shutil
import struct
from pathlib import Path

import gguf_bytes
import numpy as np
import pytest
from exports import changed, contents, leaves_nothing, strings, u32
from file_size_limit import file_size_limit

from pyvllama.conversion import checkpoint_export, export
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.errors import Cancelled, CheckpointError, ConfigError, FormatError, ModelNotFound

EMBED, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
N = 320  # tokens of the small model's lm_head


@pytest.fixture
def pair(tiny_pair):
    return tiny_pair("small")


def f32(key, value):
    return lambda g: g.set(key, gguf_bytes.F32, struct.pack("<f", value))


# --- failures while writing ---


@pytest.mark.parametrize("after", [1, 2, 30, 100])
def test_cancelled(after, pair, tmp_path):
    calls = []

    def progress(*call):
        calls.append(call)
        return len(calls) < after

    with leaves_nothing(tmp_path / "out", Cancelled, match="nothing was kept"):
        export(pair.text, tmp_path / "out", progress=progress)
    assert len(calls) == after


def test_interrupted(pair, tmp_path):
    def progress(*call):
        raise KeyboardInterrupt

    with leaves_nothing(tmp_path / "out", KeyboardInterrupt):
        export(pair.text, tmp_path / "out", progress=progress)


def test_progress_adds_up(pair, tmp_path):
    calls = []
    exported = export(pair.text, tmp_path, progress=lambda *call: calls.append(call))
    done = [c[0] for c in calls]
    assert done == sorted(done)
    n_bytes = sum(4 * int(np.prod(t.shape)) for t in Checkpoint(exported).tensors.values())
    assert {c[1] for c in calls} == {done[-1]} == {n_bytes}


def test_existing_files_are_kept_unless_asked(pair, tmp_path):
    out = export(pair.text, tmp_path / "out")
    expected = contents(out)
    (out / "config.json").write_text("mine")
    with leaves_nothing(out, ConfigError, match=r"config\.json exist already"):
        export(pair.text, out)
    with leaves_nothing(out, Cancelled):
        export(pair.text, out, overwrite=True, progress=lambda *_: False)
    export(pair.text, out, overwrite=True)
    assert contents(out) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "chat_template.jinja",
        "processor_config.json",
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_no_mixture_of_two_checkpoints(name, overwrite, pair, tmp_path):
    """Files that would be read with the new ones, or instead of them."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with leaves_nothing(out, ConfigError, match=f"of another checkpoint \\({name}"):
        export(pair.text, out, overwrite=overwrite)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_full_disk(where, pair, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", fail) if where == "fsync" else (Path, "replace", fail)))
    with leaves_nothing(tmp_path / "out", ConfigError, match="disk is full"):
        export(pair.text, tmp_path / "out")


@pytest.mark.parametrize("limit", [0, 100, 5000, 300_000, 2_000_000])
def test_writes_that_really_fail(limit, pair, tmp_path):
    """The kernel refuses to write past a size, anywhere in the files."""
    with leaves_nothing(tmp_path / "out", ConfigError, match="cannot be written"), file_size_limit(limit):
        export(pair.text, tmp_path / "out")


def test_disk_too_small_is_known_before(pair, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with leaves_nothing(tmp_path / "out", ConfigError, match=r"0\.0 MB free, but the files need \d+\.\d MB"):
        export(pair.text, tmp_path / "out")


@pytest.mark.parametrize("where", ["tensor", "json"])
def test_a_failing_disk_is_found_by_the_second_read(where, pair, tmp_path, monkeypatch):
    write = checkpoint_export.write_safetensors

    def write_and_rot(path, *rest):
        checksums = write(path, *rest)
        victim = path if where == "tensor" else path.with_name("tokenizer_config.json")
        with victim.open("r+b") as f:
            f.seek(-2, os.SEEK_END)
            f.write(b"\x55")
        return checksums

    monkeypatch.setattr(checkpoint_export, "write_safetensors", write_and_rot)
    with leaves_nothing(tmp_path / "out", FormatError, match="read back is not what was written: is the disk failing"):
        export(pair.text, tmp_path / "out")


def test_a_file_in_the_place_of_the_directory(pair, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be made"):
        export(pair.text, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_numbers_that_are_none(pair, tmp_path):
    def change(g):
        values = np.frombuffer(g.tensor("blk.1.ffn_up.weight").data, np.float32).copy()
        values[5] = np.nan
        g.tensor("blk.1.ffn_up.weight").data = values.tobytes()

    text = changed(pair.text, tmp_path, change)
    with leaves_nothing(tmp_path / "out", CheckpointError, match=r"blk\.1\.ffn_up\.weight holds numbers"):
        export(text, tmp_path / "out", mmproj=pair.mmproj)


# --- what is no pair ---


def test_quantized_files(pocket_pairs, tmp_path):
    pair = pocket_pairs("q4_k_m", "q8_0")
    with leaves_nothing(tmp_path / "out", ConfigError, match=r"Q4_K_M\.gguf \(.*q4_K.*\) and .*--dequantize"):
        export(pair.text, tmp_path / "out")
    pair = pocket_pairs("f32", "q8_0")
    with leaves_nothing(tmp_path / "out", ConfigError, match=r"^mmproj-pocket-vllama-Q8_0\.gguf \(q8_0\): quantized"):
        export(pair.text, tmp_path / "out")


def test_files_that_are_not_there(pair, tmp_path):
    with pytest.raises(ModelNotFound, match="no such file"):
        export(tmp_path / "gone.gguf", tmp_path / "out")
    with pytest.raises(ModelNotFound, match="no such mmproj"):
        export(pair.text, tmp_path / "out", mmproj=tmp_path / "gone.gguf")
    assert not (tmp_path / "out").exists()


def test_the_two_files_exchanged(pair, tmp_path):
    with leaves_nothing(tmp_path / "out", FormatError, match="no mmproj file of Llama 3.2 Vision"):
        export(pair.mmproj, tmp_path / "out", mmproj=pair.text)


def test_the_mmproj_of_another_model(pair, tiny_pair, tmp_path):
    with leaves_nothing(tmp_path / "out", FormatError, match=r"do not belong.* llama\.block_count is 4, .* 5;"):
        export(pair.text, tmp_path / "out", mmproj=tiny_pair("base").mmproj)


def without(*names):
    def change(g):
        g.tensors = [t for t in g.tensors if t.name not in names]

    return change


def narrower(g):
    t = g.tensor("blk.0.attn_k.weight")
    t.dims[1] //= 2
    t.data = t.data[: len(t.data) // 2]


def with_bias(g):
    norm = g.tensor("output_norm.weight")
    g.tensors.append(gguf_bytes.Tensor("blk.0.attn_q.bias", list(norm.dims), norm.kind, norm.data))


def test_tensors_that_are_not_those_of_the_model(pair, tmp_path):
    """All in one message, of both files."""
    text = changed(
        pair.text, tmp_path, lambda g: [c(g) for c in (without("blk.2.ffn_norm.weight"), narrower, with_bias)]
    )
    mmproj = changed(pair.mmproj, tmp_path, without("xattn.blk.2.gate_attn", "v.class_embd"))
    with pytest.raises(FormatError) as caught:
        export(text, tmp_path / "out", mmproj=mmproj)
    assert not (tmp_path / "out").exists()
    message = str(caught.value)
    assert "changed-tiny-small-F32.gguf: missing: blk.2.ffn_norm.weight" in message
    assert "blk.0.attn_k.weight: shape [16, 128], not [32, 128]" in message
    assert "unknown: blk.0.attn_q.bias" in message
    assert "changed-mmproj-tiny-small-F32.gguf: missing: xattn.blk.2.gate_attn" in message
    assert "missing: v.class_embd" in message


TEXT_EVILS = {
    "another tokenizer": (
        lambda g: g.set("tokenizer.ggml.pre", gguf_bytes.STRING, gguf_bytes.string("qwen2")), "'gpt2' / 'qwen2'"),
    "no eos": (lambda g: g.drop_key("tokenizer.ggml.eos_token_id"), r"missing tokenizer\.ggml\.eos_token_id"),
    "eos outside": (u32("tokenizer.ggml.eos_token_id", 9999), r"eos_token_id = 9999"),
    "no types": (lambda g: g.drop_key("tokenizer.ggml.token_type"), "token_type is no list of 328"),
    "odd types": (
        lambda g: g.set("tokenizer.ggml.token_type", gguf_bytes.ARRAY,
                        gguf_bytes.array(gguf_bytes.I32, [struct.pack("<i", 6)] * 328)), r"holds \[6\]"),
    "no merges": (lambda g: g.drop_key("tokenizer.ggml.merges"), "no tokenizer.ggml.merges"),
    "wrong merges": (
        lambda g: g.set("tokenizer.ggml.merges", gguf_bytes.ARRAY, strings("a nothing")), "'a nothing' joins no two"),
    "half a merge": (lambda g: g.set("tokenizer.ggml.merges", gguf_bytes.ARRAY, strings("a")), "'a' joins no two"),
    "few tokens": (
        lambda g: g.set("tokenizer.ggml.tokens", gguf_bytes.ARRAY, strings(*(f"t{i}" for i in range(324)))),
        "the vocabulary has 324 tokens, the mmproj was made for 320"),
    "linear rope": (
        lambda g: g.set("llama.rope.scaling.type", gguf_bytes.STRING, gguf_bytes.string("linear")),
        r"llama\.rope\.scaling\.type = 'linear'"),
    "other epsilon": (
        f32("llama.attention.layer_norm_rms_epsilon", 1e-6), r"layer_norm_rms_epsilon is 9\.99\S+, clip\.mllama"),
    "other feed-forward": (u32("llama.feed_forward_length", 200), r"feed_forward_length is 200, .* 192"),
    "no context": (lambda g: g.drop_key("llama.context_length"), r"missing llama\.context_length"),
}  # fmt: skip


@pytest.mark.parametrize("evil", TEXT_EVILS)
def test_text_files_that_make_no_checkpoint(evil, pair, tmp_path):
    change, message = TEXT_EVILS[evil]
    text = changed(pair.text, tmp_path, change)
    with leaves_nothing(tmp_path / "out", FormatError, match=message):
        export(text, tmp_path / "out", mmproj=pair.mmproj)


MMPROJ_EVILS = {
    "the next format": (u32("clip.mllama.format_version", 2), "format_version is 2"),
    "no sizes": (lambda g: g.drop_key("clip.mllama.text.vocab_size"), r"missing clip\.mllama\.text\.vocab_size"),
    "no tower": (lambda g: g.drop_key("clip.vision.block_count"), r"missing clip\.vision\.block_count"),
    "odd grids": (
        lambda g: g.set("clip.mllama.supported_aspect_ratios", gguf_bytes.ARRAY,
                        gguf_bytes.array(gguf_bytes.I32, [struct.pack("<i", 1)] * 3)), "supported_aspect_ratios"),
    "no means": (lambda g: g.drop_key("clip.vision.image_mean"), r"missing clip\.vision\.image_mean"),
    "an image token far away": (u32("clip.mllama.image_token_id", 4000), "image_token_index = 4000"),
}  # fmt: skip


@pytest.mark.parametrize("evil", MMPROJ_EVILS)
def test_mmprojs_that_make_no_checkpoint(evil, pair, tmp_path):
    change, message = MMPROJ_EVILS[evil]
    mmproj = changed(pair.mmproj, tmp_path, change)
    with leaves_nothing(tmp_path / "out", FormatError, match=message):
        export(pair.text, tmp_path / "out", mmproj=mmproj)


ODD_VALUES = ((gguf_bytes.U32, struct.pack("<I", 0)), (gguf_bytes.F32, struct.pack("<f", np.nan)),
              (gguf_bytes.STRING, gguf_bytes.string("x")), (gguf_bytes.ARRAY, gguf_bytes.array(gguf_bytes.I32, [])),
              (gguf_bytes.ARRAY, gguf_bytes.array(gguf_bytes.I32, [struct.pack("<i", -7)])),
              (gguf_bytes.ARRAY, strings("y")))  # fmt: skip


@pytest.mark.parametrize("side", ["text", "mmproj"])
def test_no_key_can_do_more_than_be_refused(side, pair, tmp_path):
    """Every key gone, or with a value of any other kind: an error of ours, or a checkpoint."""
    path = tmp_path / f"{side}.gguf"
    original = gguf_bytes.read(getattr(pair, side))
    files = {"text": pair.text, "mmproj": pair.mmproj} | {side: path}
    refused = 0
    for key in list(original.keys):
        for value in (None, *ODD_VALUES):
            others = [k for k in original.keys if k.name != key.name]
            added = [] if value is None else [gguf_bytes.Key(key.name, *value)]
            path.write_bytes(dataclasses.replace(original, keys=[*others, *added]).to_bytes())
            try:
                checkpoint_export.plan_export(files["text"], mmproj=files["mmproj"])
            except FormatError:
                refused += 1
    assert refused > 4 * len(original.keys)
