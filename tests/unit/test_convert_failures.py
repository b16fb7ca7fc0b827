"""Conversions that fail: each with a named error, and none leaves anything behind."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import factories
import numpy as np
import pytest
from file_size_limit import file_size_limit

from pyvllama.conversion import convert, output, writer
from pyvllama.errors import Cancelled, CheckpointError, ConfigError, FormatError, ModelNotFound
from pyvllama.gguf_file import GGUFFile


def contents(directory):
    """Everything below a directory, hidden files too."""
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def convert_small(checkpoint, out_dir, **options):
    return convert(checkpoint, out_dir, **({"text_type": "f32", "mmproj_type": "f32"} | options))


def edit_json(directory, name, change):
    path = directory / name
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint):
    """A copy of a tiny checkpoint, free to be damaged."""
    return shutil.copytree(tiny_checkpoint("small"), tmp_path / "checkpoint")


@contextlib.contextmanager
def leaves_nothing(out_dir, *errors, match=None):
    """The conversion fails with one of the errors and the output directory is as before."""
    out_dir.mkdir(exist_ok=True)
    before = {name: (out_dir / name).read_bytes() for name in contents(out_dir)}
    with pytest.raises(errors, match=match):
        yield
    assert {name: (out_dir / name).read_bytes() for name in contents(out_dir)} == before


@pytest.mark.parametrize("after", [1, 2, 30, 100])
def test_cancelled(after, tmp_path, tiny_checkpoint):
    calls = []

    def progress(*call):
        calls.append(call)
        return len(calls) < after

    with leaves_nothing(tmp_path / "out", Cancelled, match="nothing was kept"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out", progress=progress)
    assert len(calls) == after


def test_interrupted(tmp_path, tiny_checkpoint):
    def progress(*call):
        raise KeyboardInterrupt

    with leaves_nothing(tmp_path / "out", KeyboardInterrupt):
        convert_small(tiny_checkpoint("small"), tmp_path / "out", progress=progress)


def test_a_failure_keeps_the_files_it_was_to_replace(tmp_path, tiny_checkpoint):
    convert_small(tiny_checkpoint("small"), tmp_path / "out")
    with leaves_nothing(tmp_path / "out", Cancelled):
        convert_small(tiny_checkpoint("small"), tmp_path / "out", overwrite=True, progress=lambda *_: False)


def test_existing_files_are_kept_unless_asked(tmp_path, tiny_checkpoint):
    out = tmp_path / "out"
    pair = convert_small(tiny_checkpoint("small"), out)
    pair.text.write_bytes(b"mine")
    with leaves_nothing(out, ConfigError, match=r"F32\.gguf and .* exist already; .*--overwrite"):
        convert_small(tiny_checkpoint("small"), out)
    assert GGUFFile(convert_small(tiny_checkpoint("small"), out, overwrite=True).text).tensors


@pytest.mark.parametrize("where", ["fsync", "replace", "lock"])
def test_full_disk(where, tmp_path, tiny_checkpoint, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path_open = Path.open

    def no_lock(path, *arguments, **options):
        return fail() if path.name == "lock" else path_open(path, *arguments, **options)

    tiny_checkpoint("small")
    monkeypatch.setattr(
        *{"fsync": (os, "fsync", fail), "replace": (Path, "replace", fail), "lock": (Path, "open", no_lock)}[where]
    )
    with leaves_nothing(tmp_path / "out", ConfigError, match="disk is full"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out")


def test_second_file_cannot_be_renamed(tmp_path, tiny_checkpoint, monkeypatch):
    """The first file, already renamed, is taken back: half a pair is of no use."""
    replace = Path.replace

    def fail(self, target):
        if target.name.startswith("mmproj"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with leaves_nothing(tmp_path / "out", ConfigError, match="Permission denied"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out")


@pytest.mark.parametrize("limit", [0, 100, 5000, 300_000, 900_000])
def test_writes_that_really_fail(limit, tmp_path, tiny_checkpoint):
    """The kernel refuses to write past a size, anywhere in the file."""
    checkpoint = tiny_checkpoint("small")
    with leaves_nothing(tmp_path / "out", ConfigError, match="cannot be written"), file_size_limit(limit):
        convert_small(checkpoint, tmp_path / "out")


def test_disk_too_small_is_known_before(tmp_path, tiny_checkpoint, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with leaves_nothing(tmp_path / "out", ConfigError, match=r"0\.0 MB free, but the files need \d+\.\d MB"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out")


def test_a_failing_disk_is_found_by_the_second_read(tmp_path, tiny_checkpoint, monkeypatch):
    write = writer.write_gguf

    def write_and_rot(path, *rest):
        checksums = write(path, *rest)
        last = list(GGUFFile(path).tensors.values())[-1]
        with path.open("r+b") as f:
            f.seek(last.offset)
            f.write(b"\xff")
        return checksums

    monkeypatch.setattr(output, "write_gguf", write_and_rot)
    with leaves_nothing(tmp_path / "out", FormatError, match="failing"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out")


def test_out_dir_is_a_file(tmp_path, tiny_checkpoint):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be made"):
        convert_small(tiny_checkpoint("small"), tmp_path / "out")


def without(name):
    return lambda d: (d / name).unlink()


def edited(name, change):
    return lambda d: edit_json(d, name, change)


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rewritten(edit=None, **options):
    return lambda d: factories.write_checkpoint(d, "small", edit=edit, **options)


def renamed_norm(name, values):
    return None if name == "language_model.model.norm.weight" else values


def wider_bias(name, values):
    return np.zeros(7, np.float32) if name == "multi_modal_projector.bias" else values


def with_nan(name, values):
    if name == "multi_modal_projector.weight":
        values[0, 0] = np.nan
    return values


def extra_layer(directory):
    edit_json(directory, "config.json", lambda c: c["vision_config"].update(num_global_layers=2))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without("config.json"), ModelNotFound, r"no config\.json"),
        (without("tokenizer.json"), CheckpointError, r"lacks tokenizer\.json"),
        (without("preprocessor_config.json"), CheckpointError, r"lacks preprocessor_config\.json"),
        (without("model.safetensors"), CheckpointError, "neither"),
        (truncated, CheckpointError, "truncated"),
        (rewritten(renamed_norm), CheckpointError, r"missing: language_model\.model\.norm\.weight"),
        (rewritten(wider_bias), CheckpointError, r"multi_modal_projector\.bias: shape \[7\].*asks for \[128\]"),
        (rewritten(with_nan), CheckpointError, r"multi_modal_projector\.weight holds numbers that are infinite"),
        (extra_layer, CheckpointError, r"missing: vision_model\.global_transformer\.layers\.1\."),
        (rewritten(num_hidden_layers=7), None, None),
        (edited("config.json", lambda c: c["text_config"].pop("hidden_size")), ConfigError, "missing hidden_size"),
        (
            edited("config.json", lambda c: c["text_config"]["rope_scaling"].update(rope_type="yarn")),
            ConfigError,
            "rope_type = 'yarn'",
        ),
        (
            edited("config.json", lambda c: c["text_config"].update(cross_attention_layers=[0, 2])),
            ConfigError,
            r"cross_attention_layers = \[0, 2\]",
        ),
        (
            edited("config.json", lambda c: c["text_config"].update(num_hidden_layers=5)),
            ConfigError,
            "after the last",
        ),
        (
            edited("preprocessor_config.json", lambda c: c.update(max_image_tiles=2)),
            ConfigError,
            "makes 2 tiles of 42 pixels",
        ),
        (edited("generation_config.json", lambda c: c.update(temperature="warm")), ConfigError, "temperature = 'warm'"),
    ],
)
def test_bad_checkpoints(damage, error, message, checkpoint, tmp_path):
    damage(checkpoint)
    if error is None:
        convert_small(checkpoint, tmp_path / "out")
    else:
        with leaves_nothing(tmp_path / "out", error, match=message):
            convert_small(checkpoint, tmp_path / "out")


def test_unknown_tensor(tmp_path, tiny_checkpoint):
    checkpoint = shutil.copytree(tiny_checkpoint("small", n_shards=2), tmp_path / "checkpoint")
    factories.write_safetensors(checkpoint / "extra.safetensors", {"lora.weight": np.zeros(2, np.float32)}, "F32")
    edit_json(
        checkpoint,
        "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"lora.weight": "extra.safetensors"}),
    )
    with leaves_nothing(tmp_path / "out", CheckpointError, match=r"unknown: lora\.weight"):
        convert_small(checkpoint, tmp_path / "out")


def test_numbers_too_large_for_f16(tmp_path):
    def large(name, values):
        return values * 1e6 if name.endswith("layers.0.mlp.up_proj.weight") else values

    checkpoint = factories.write_checkpoint(tmp_path / "model", "small", edit=large)
    with leaves_nothing(tmp_path / "out", CheckpointError, match=r"up_proj\.weight holds numbers beyond 65504"):
        convert_small(checkpoint, tmp_path / "out", text_type="f16")
    convert_small(checkpoint, tmp_path / "out", text_type="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_type": "q9"}, "text_type = 'q9'"),
        ({"mmproj_type": "q4_k_m"}, "mmproj_type = 'q4_k_m'"),
        ({"cross_type": "q4_k"}, "cross_type = 'q4_k'"),
        ({"name": "../evil"}, "name = '../evil'"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"name": "a\nb"}, "name = "),
    ],
)
def test_bad_options(options, message, tmp_path, tiny_checkpoint):
    with leaves_nothing(tmp_path / "out", ConfigError, match=message):
        convert_small(tiny_checkpoint("small"), tmp_path / "out", **options)


def test_source_does_not_exist(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing"):
        convert(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from pyvllama.conversion import convert
calls = []
def progress(*call):
    calls.append(call)
    if len(calls) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], text_type="f32", mmproj_type="f32", progress=progress)
"""


def test_killed_and_run_again(tmp_path, tiny_checkpoint):
    """Nothing under a final name, and the next conversion clears the rest away; what others are at stays."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint("small")), str(out)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".pyvllama-")
    assert any(left.iterdir())
    with output.work_directory(out, 0) as busy:
        assert not left.exists()
        pair = convert_small(tiny_checkpoint("small"), out)
        assert busy.exists()
    assert sorted(out.iterdir()) == sorted([pair.text, pair.mmproj])
