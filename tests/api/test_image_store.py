"""Encoded pictures on disk: they change the cost and never a number, whatever lies in the directory."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf_bytes
import numpy as np
import pytest
from pictures import noise
from talk import EXACT, user

import pyvllama
from pyvllama.errors import ConfigError

DEFAULTS = {"kv_type": "f16", "cross_kv_type": "f16", "flash_attn": None}


@pytest.fixture
def load(tiny_pair, tmp_path):
    """load(config_name, **options) -> a model with tmp_path/"cache" for its pictures; closed at the end."""
    loaded = []

    def load(name="small", **options):
        pair = tiny_pair(name, **options.pop("pair", {}))
        directory = options.pop("image_cache_dir", tmp_path / "cache")
        loaded.append(
            pyvllama.load(pair.text, pair.mmproj, **{**EXACT, "n_ctx": 512, **options}, image_cache_dir=directory)
        )
        return loaded[-1]

    yield load
    for llm in loaded:
        llm.close()


@pytest.fixture
def entries(tmp_path):
    return lambda: sorted(path for path in (tmp_path / "cache").iterdir())


def timings(llm, picture):
    return llm.chat([user(picture, "Hello")], max_tokens=1, temperature=0)["timings"]


def is_hit(llm, picture):
    got = timings(llm, picture)
    assert got["image_cached"] == (got["image_encode_ms"] == 0)
    return bool(got["image_cached"])


@pytest.mark.parametrize(
    "options", [EXACT, DEFAULTS, {**DEFAULTS, "cross_kv_type": "bf16"}, {**DEFAULTS, "cross_kv_type": "q8_0"}]
)
@pytest.mark.parametrize("size", [(20, 20), (90, 30), (40, 120)])
def test_a_hit_gives_the_same_bits(load, options, size):
    messages = [user(noise(*size), "Hello")]
    first, second = load(**options), load(**options)
    logits = first.logits(messages)
    np.testing.assert_array_equal(second.logits(messages), logits)
    states = [llm._images.encode(noise(*size)).states for llm in (first, second)]
    for i in range(states[0].n_parts):
        np.testing.assert_array_equal(states[1].part(i), states[0].part(i))
    assert is_hit(load(**options), noise(*size))
    np.testing.assert_array_equal(load(**options, image_cache_dir=None).logits(messages), logits)


def test_threads_make_no_difference(load):
    """A picture that was encoded by one thread serves models that use two: the bits are the same."""
    parts = []
    for n_threads in (1, 2):
        states = load(n_threads=n_threads, image_cache_dir=None)._images.encode(noise(90, 30)).states
        parts.append([states.part(i) for i in range(states.n_parts)])
    for one, two in zip(*parts, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_hit_needs_no_memory_cache(load):
    assert not is_hit(load(), noise())
    llm = load(image_cache_bytes=0)
    assert is_hit(llm, noise())
    assert is_hit(llm, noise())


@pytest.mark.parametrize(
    "other",
    [
        {"name": "two_tiles"},
        {"pair": {"mmproj_type": "f16"}},
        {"cross_kv_type": "f16"},
        {"cross_kv_type": "bf16"},
        {"repack": False},
    ],
)
def test_what_would_give_other_numbers_is_another_entry(load, entries, other):
    assert not is_hit(load(), noise())
    assert not is_hit(load(**other), noise())
    assert len(entries()) == 2
    assert is_hit(load(**other), noise())


def test_the_text_model_and_the_context_do_not_count(load, entries):
    assert not is_hit(load(), noise())
    assert is_hit(load(n_ctx=256, kv_type="f16", pair={"text_type": "f16", "cross_type": "f32"}), noise())
    assert len(entries()) == 1


def test_other_preprocessing_is_another_entry(load, tiny_pair, tmp_path):
    assert not is_hit(load(), noise())
    pair = tiny_pair("small")
    changed = gguf_bytes.rewrite(
        pair.mmproj,
        tmp_path / "mmproj.gguf",
        lambda file: file.set("clip.mllama.preprocessor.resample", 4, struct.pack("<I", 3)),
    )
    with pyvllama.load(pair.text, changed, **EXACT, image_cache_dir=tmp_path / "cache") as llm:
        assert not is_hit(llm, noise())


def test_only_the_owner_can_read_it(load, entries, tmp_path):
    timings(load(), noise())
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in entries()] == [0o600]


# --- what cannot be used ---


def damages(path, other):
    """name -> how an entry is spoilt."""
    raw = path.read_bytes()
    header = raw.index(b"}") + 1

    def write(data):
        path.unlink()
        path.write_bytes(data)

    def link():
        path.unlink()
        path.symlink_to(other)

    def pipe():
        path.unlink()
        os.mkfifo(path)

    return {
        "empty": lambda: write(b""),
        "cut in the header": lambda: write(raw[: header - 5]),
        "cut behind the header": lambda: write(raw[: header + 32]),
        "cut in the last section": lambda: write(raw[:-40]),
        "without its last byte": lambda: write(raw[:-1]),
        "longer": lambda: write(raw + b"\0"),
        "a byte of the header": lambda: write(raw[:20] + bytes([raw[20] ^ 1]) + raw[21:]),
        "a byte of the keys": lambda: write(raw[: header + 99] + bytes([raw[header + 99] ^ 1]) + raw[header + 100 :]),
        "zeros": lambda: write(bytes(len(raw))),
        "another picture's": lambda: write(other.read_bytes()),
        "a link to another picture's": link,
        "a pipe": pipe,
    }


NAMES = sorted(damages(Path(__file__), None))


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_entry_is_ignored_and_replaced(load, entries, caplog, name):
    timings(load(), noise(seed=1))
    (other,) = entries()
    logits = load().logits([user(noise(), "Hello")])
    (path,) = set(entries()) - {other}
    damages(path, other)[name]()
    other_raw = other.read_bytes()
    llm = load()
    assert not is_hit(llm, noise())
    assert str(path) in caplog.text
    np.testing.assert_array_equal(llm.logits([user(noise(), "Hello")]), logits)
    caplog.clear()
    assert is_hit(load(), noise())
    assert not caplog.text
    assert other.read_bytes() == other_raw


def test_a_directory_in_the_place_of_an_entry_is_left_alone(load, entries, caplog):
    timings(load(), noise())
    (path,) = entries()
    path.unlink()
    (path / "inside").mkdir(parents=True)
    for _ in range(2):
        assert not is_hit(load(), noise())
    assert "is not kept" in caplog.text
    assert entries() == [path]


def test_a_directory_that_is_gone_costs_only_the_cache(load, tmp_path, caplog):
    llm = load()
    (tmp_path / "cache").rmdir()
    assert not is_hit(llm, noise())
    assert "is not kept" in caplog.text


def test_a_disk_that_is_full_costs_only_the_cache(load, entries, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyvllama.sealed_file.os.fdopen", full)
    assert not is_hit(load(), noise())
    assert "No space left on device" in caplog.text
    assert entries() == []


@pytest.mark.parametrize("options", [{"image_cache_disk_bytes": -1}, {"image_cache_dir": __file__}])
def test_what_cannot_be_a_cache(load, options):
    with pytest.raises(ConfigError, match="image"):
        load(**options)


# --- its size ---


def test_the_least_recently_used_goes_first(load, entries):
    timings(load(), noise(seed=0))
    n_bytes = entries()[0].stat().st_size
    llm = load(image_cache_disk_bytes=3 * n_bytes + 300, image_cache_bytes=0)
    paths = [llm._images._store.path(llm._images.key(noise(seed=seed))) for seed in range(5)]
    for age, seed in enumerate((0, 1, 2)):
        timings(llm, noise(seed=seed))
        os.utime(paths[seed], ns=(10**18 + age, 10**18 + age))
    assert is_hit(llm, noise(seed=0))  # used again
    timings(llm, noise(seed=3))
    assert entries() == sorted([paths[0], paths[2], paths[3]])
    timings(llm, noise(seed=4))
    assert entries() == sorted([paths[0], paths[3], paths[4]])


@pytest.mark.parametrize("max_bytes", [0, 1000])
def test_a_picture_over_the_size_is_not_kept(load, entries, max_bytes):
    assert not is_hit(load(image_cache_disk_bytes=max_bytes), noise())
    assert entries() == []


def test_other_files_are_left_alone_and_abandoned_ones_go(load, entries, tmp_path):
    timings(load(), noise())
    (entry,) = entries()
    young, old, notes = (
        tmp_path / "cache" / name for name in (f".{entry.name}.a.tmp", f".{entry.name}.b.tmp", "notes")
    )
    for path in (young, old, notes):
        path.write_bytes(bytes(10**6))
    os.utime(old, (0, 0))
    os.utime(notes, (0, 0))
    llm = load(image_cache_disk_bytes=entry.stat().st_size + 100)
    timings(llm, noise(seed=1))
    assert len(entries()) == 3
    assert {young, notes} < set(entries())
    assert not {old, entry} & set(entries())


# --- processes ---

WORKER = """
import sys
import numpy as np
from pictures import noise
from talk import EXACT, user
import pyvllama
from pathlib import Path
text, mmproj, directory, out = sys.argv[1:]
rng = np.random.default_rng()
with pyvllama.load(text, mmproj, **EXACT, n_ctx=512, image_cache_dir=directory, image_cache_bytes=0,
                   image_cache_disk_bytes=int(sys.stdin.readline())) as llm:
    found = {}
    for seed in rng.integers(0, 4, 60):
        logits = llm.logits([user(noise(seed=int(seed)), "Hello")])
        assert (found.setdefault(int(seed), logits) == logits).all()
np.savez(out, **{str(seed): logits for seed, logits in found.items()})
"""


def test_processes_share_it(load, entries, tiny_pair, tmp_path):
    """Three at once, with room for two of their four pictures: all get the numbers that a lone model computes."""
    lone = load(image_cache_dir=None)
    timings(load(), noise())
    (entry,) = entries()
    n_bytes = 2 * entry.stat().st_size + 300
    pair = tiny_pair("small")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    programs = []
    for i in range(3):
        arguments = [pair.text, pair.mmproj, tmp_path / "cache", tmp_path / f"{i}.npz"]
        programs.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, *map(str, arguments)],
                stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )
        )  # fmt: skip
    said = [program.communicate(f"{n_bytes}\n", timeout=120)[1] for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0], said
    assert not any("is not used" in text for text in said), said
    for i in range(3):
        for seed, logits in np.load(tmp_path / f"{i}.npz").items():
            np.testing.assert_array_equal(logits, lone.logits([user(noise(seed=int(seed)), "Hello")]))
    assert all(path.suffix == ".states" for path in entries())
