"""What was made once is found again, nothing half made ever is, and two processes make it once."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pyvllama.errors import Cancelled, ConfigError
from pyvllama.model_cache import ModelCache, Recipe, cache_root, directory_fingerprint
from pyvllama.types import Pair

OPTIONS = {"text_type": "q4_k_m", "mmproj_type": "q8_0"}
RECIPE = Recipe("checkpoint", "/models/tiny", "tiny", "v1", OPTIONS)


@pytest.fixture
def cache(tmp_path):
    return ModelCache(tmp_path / "cache")


class Maker:
    """Makes a pair of two small files and remembers how often it did."""

    def __init__(self):
        self.calls = 0
        self.notes = []

    def __call__(self, work: Path) -> Pair:
        assert list(work.iterdir()) == []
        self.calls += 1
        pair = Pair(work / "tiny-Q4_K_M.gguf", work / "mmproj-tiny-Q8_0.gguf")
        pair.text.write_bytes(bytes(self.calls))
        pair.mmproj.write_bytes(bytes(10))
        return pair


@pytest.fixture
def maker():
    return Maker()


def left(cache):
    """Everything below the cache but its locks."""
    return sorted(str(p.relative_to(cache.root)) for p in cache.root.rglob("*") if ".locks" not in p.parts)


def test_made_once(cache, maker):
    first = cache.provide(RECIPE, maker, maker.notes.append)
    assert cache.provide(RECIPE, maker, maker.notes.append) == first
    assert (maker.calls, maker.notes) == (1, [])
    assert first.text.parent == first.mmproj.parent == cache.root / RECIPE.id
    assert first.text.read_bytes() == bytes(1)
    (entry,) = cache.entries()
    assert (entry.recipe, entry.pair, entry.sizes) == (RECIPE, first, (1, 10))
    assert left(cache) == sorted(
        [RECIPE.id] + [f"{RECIPE.id}/{n}" for n in ("entry.json", *(p.name for p in vars_of(first)))]
    )


def vars_of(pair):
    return pair.text, pair.mmproj


def test_names_of_entries():
    assert RECIPE.title == "tiny-Q4_K_M"
    assert RECIPE.id.startswith("tiny-Q4_K_M-")
    others = [
        Recipe("hub", "/models/tiny", "tiny", "v1", OPTIONS),
        Recipe("checkpoint", "/other/tiny", "tiny", "v1", OPTIONS),
        Recipe("checkpoint", "/models/tiny", "tiny", "v1", OPTIONS | {"mmproj_type": "f16"}),
    ]
    assert len({r.id for r in (RECIPE, *others)}) == 4
    assert Recipe("checkpoint", "/models/tiny", "tiny", "v2", OPTIONS).id == RECIPE.id
    for name in ("../../etc", "a/b\\c", "", "..", "x" * 500, "a\0b", ".hidden", "ü"):
        entry_id = Recipe("checkpoint", "/", name, "", {}).id
        assert Path(entry_id).name == entry_id
        assert not entry_id.startswith(".")
        assert len(entry_id) < 200


def test_a_changed_source_is_made_again(cache, maker):
    cache.provide(RECIPE, maker, maker.notes.append)
    changed = Recipe(RECIPE.kind, RECIPE.source, RECIPE.name, "v2", OPTIONS)
    pair = cache.provide(changed, maker, maker.notes.append)
    assert maker.calls == 2
    assert pair.text.read_bytes() == bytes(2)
    (entry,) = cache.entries()
    assert entry.recipe.fingerprint == "v2"
    assert len(left(cache)) == 4  # the old files are gone


@pytest.mark.parametrize("error", [Cancelled("no"), KeyboardInterrupt(), RuntimeError("broken")])
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_one_leaves_nothing_new(cache, maker, error, before):
    if before:
        cache.provide(RECIPE, maker, maker.notes.append)

    def broken(work):
        (work / "tiny-Q4_K_M.gguf").write_bytes(b"half")
        raise error

    changed = Recipe(RECIPE.kind, RECIPE.source, RECIPE.name, "v2", OPTIONS)
    with pytest.raises(type(error)):
        cache.provide(changed, broken, maker.notes.append)
    assert len(cache.entries()) == len([p for p in left(cache) if "/" not in p]) == int(before)
    cache.provide(changed, maker, maker.notes.append)
    assert cache.entries()[0].recipe.fingerprint == "v2"


PROGRAM = """
    import sys, time
    from pathlib import Path
    from pyvllama.model_cache import ModelCache, Recipe
    from pyvllama.types import Pair

    def make(work):
        print("making", flush=True)
        pair = Pair(work / "a.gguf", work / "mmproj-a.gguf")
        pair.text.write_bytes(b"x")
        time.sleep(float(sys.argv[2]))
        pair.mmproj.write_bytes(b"y")
        return pair

    recipe = Recipe("checkpoint", "/models/tiny", "tiny", "v1", {})
    pair = ModelCache(Path(sys.argv[1])).provide(recipe, make, lambda line: print("note", line, flush=True))
    assert pair.mmproj.read_bytes() == b"y"
    print("done", flush=True)
"""


def start(cache, seconds):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(cache.root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_make_it_once(cache):
    first = start(cache, 2)
    assert first.stdout.readline() == "making\n"
    second = start(cache, 0)
    out, _ = second.communicate(timeout=60)
    assert out.splitlines()[-1] == "done"
    assert "being made by another process: waiting for it" in out
    assert "making" not in out
    assert first.communicate(timeout=60)[0] == "done\n"


def test_a_killed_process_holds_nobody_up_and_its_files_go(cache):
    first = start(cache, 60)
    assert first.stdout.readline() == "making\n"
    deadline = time.monotonic() + 10
    while not list(cache.root.glob(".tiny*/a.gguf")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert list(cache.root.glob(".tiny*/a.gguf"))  # what it left
    assert cache.entries() == []
    out, _ = start(cache, 0).communicate(timeout=60)
    assert out == "making\ndone\n"
    assert len(left(cache)) == 4


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b'{"layout": 1}',
        b'{"layout": 99}',
        b'{"layout": 1, "kind": 3, "source": "", "name": "", "fingerprint": "", "options": {}, "text": "x"}',
        b"\xff\xfe",
        b"[" * 60000,
    ],
)
def test_a_damaged_note_is_no_entry_and_is_made_again(cache, maker, note):
    cache.provide(RECIPE, maker, maker.notes.append)
    (cache.root / RECIPE.id / "entry.json").write_bytes(note)
    assert cache.entries() == []
    cache.provide(RECIPE, maker, maker.notes.append)
    assert maker.calls == 2
    assert len(cache.entries()) == 1


def test_a_missing_file_is_made_again(cache, maker):
    cache.provide(RECIPE, maker, maker.notes.append).mmproj.unlink()
    assert cache.entries() == []
    assert cache.provide(RECIPE, maker, maker.notes.append).mmproj.is_file()


def test_last_used_first(cache, maker):
    other = Recipe("hub", "a/b", "b", "v1", OPTIONS)
    for recipe in (RECIPE, other):
        cache.provide(recipe, maker, maker.notes.append)
    for recipe, used in ((RECIPE, 1000), (other, 2000)):
        os.utime(cache.root / recipe.id / "entry.json", (used, used))
    assert [e.recipe for e in cache.entries()] == [other, RECIPE]
    cache.provide(RECIPE, maker, maker.notes.append)
    assert [e.recipe for e in cache.entries()] == [RECIPE, other]


def test_removing(cache, maker, tmp_path):
    cache.provide(RECIPE, maker, maker.notes.append)
    (entry,) = cache.entries()
    with pytest.raises(ConfigError, match="no model of the cache"):
        ModelCache(tmp_path / "elsewhere").remove(entry)
    cache.remove(entry)
    assert (cache.entries(), left(cache)) == ([], [])


def test_nothing_outside_is_listed_or_deleted(cache, maker, tmp_path):
    pair = cache.provide(RECIPE, maker, maker.notes.append)
    outside = tmp_path / "precious"
    pair.text.parent.rename(outside)
    pair.text.parent.symlink_to(outside)
    assert cache.entries() == []
    assert outside.is_dir()


def test_one_being_made_is_not_removed(cache, maker):
    cache.provide(RECIPE, maker, maker.notes.append)
    (entry,) = cache.entries()

    def make(work):
        with pytest.raises(ConfigError, match="being made by another process"):
            ModelCache(cache.root).remove(entry)
        return maker(work)

    cache.provide(Recipe(RECIPE.kind, RECIPE.source, RECIPE.name, "v2", OPTIONS), make, maker.notes.append)


def test_a_cache_that_cannot_be_written(tmp_path, maker):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="PYVLLAMA_CACHE names another directory"):
        ModelCache(tmp_path / "file").provide(RECIPE, maker, maker.notes.append)
    assert ModelCache(tmp_path / "file").entries() == []


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"PYVLLAMA_CACHE": "/data/models"}, "/data/models"),
        ("linux", {"PYVLLAMA_CACHE": "~/models"}, "/home/me/models"),
        ("linux", {}, "/home/me/.cache/pyvllama"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/pyvllama"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/pyvllama"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "/home/me/Library/Caches/pyvllama"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/pyvllama/Cache"),
        ("win32", {}, "/home/me/AppData/Local/pyvllama/Cache"),
    ],
)
def test_where_it_is(monkeypatch, platform, environment, expected):
    for name in ("PYVLLAMA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_root() == Path(expected)


def test_fingerprints_of_directories(tmp_path):
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text(name)
    first = directory_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("other words")
    (tmp_path / "photo.png").write_text("new")
    assert directory_fingerprint(tmp_path) == first
    os.utime(tmp_path / "model.safetensors", ns=(0, 1))
    second = directory_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("longer than before")
    third = directory_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("")
    assert len({first, second, third, directory_fingerprint(tmp_path)}) == 4
    with pytest.raises(ConfigError, match="gone"):
        directory_fingerprint(tmp_path / "gone")
