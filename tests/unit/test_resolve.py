"""All that a user may call a model, and what is done for each kind of name."""

import shutil

import ollama_store
import pytest

import pyvllama
from pyvllama import resolve as resolve_module
from pyvllama.errors import Cancelled, ConfigError, ModelNotFound
from pyvllama.gguf_file import GGUFFile
from pyvllama.hub_client import Listing
from pyvllama.locate import pocket_pair
from pyvllama.model_cache import ModelCache
from pyvllama.resolve import is_model_name, resolve
from pyvllama.types import Pair


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PYVLLAMA_CACHE", str(tmp_path / "cache"))
    return ModelCache()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("small"), tmp_path / "my-tune")


# --- files ---


def test_files_are_left_where_they_are(cache, tiny_pair, notes):
    pair = tiny_pair("small")
    assert resolve(None) == pocket_pair()
    assert resolve(pair.text, note=notes.append) == resolve(str(pair.text.parent), note=notes.append) == pair
    assert resolve(None, pair.mmproj) == Pair(pocket_pair().text, pair.mmproj)
    assert notes == []
    assert not cache.root.exists()


@pytest.mark.parametrize("model", [None, "text", "folder"])
def test_a_type_for_what_is_not_converted(tiny_pair, model):
    pair = tiny_pair("small")
    named = {None: None, "text": pair.text, "folder": pair.text.parent}[model]
    with pytest.raises(ConfigError, match="is no checkpoint, so nothing is converted"):
        resolve(named, text_type="q8_0")


def test_names_of_nothing():
    for name in ("nothing-of-that-name", "./a/b", "a/b/c.gguf", "C:\\x"):
        with pytest.raises(ModelNotFound, match="no such file or directory"):
            resolve(name)
    for name in ("", "a\0b"):
        with pytest.raises(ModelNotFound):
            resolve(name)
    with pytest.raises(ModelNotFound, match="no such mmproj file"):
        resolve(None, "eyes.gguf")


# --- checkpoints ---


def test_a_checkpoint_is_converted_once(cache, checkpoint, notes):
    seen = []
    pair = resolve(checkpoint, text_type="F32", note=notes.append, progress=lambda *at: seen.append(at))
    assert pair.text == cache.root / pair.text.parent.name / "my-tune-F32.gguf"
    assert notes[-1] == f"Converting {checkpoint} to F32 and Q8_0, once; it is kept in {pair.text.parent}"
    assert seen[-1][0] == seen[-1][1] > 0
    assert GGUFFile(pair.text).metadata["general.name"] == "my-tune"
    assert str(cache.root) not in repr(GGUFFile(pair.text).metadata)

    notes.clear()
    assert resolve(str(checkpoint), text_type="f32", note=notes.append) == pair
    assert resolve("my-tune-F32", note=notes.append) == resolve(pair.text.parent.name) == pair
    assert notes == []
    assert is_model_name("my-tune-F32")
    other = resolve(checkpoint, text_type="q8_0", note=notes.append)  # another type is another model
    assert other.text.name == "my-tune-Q8_0.gguf"
    assert len(cache.entries()) == 2


def test_a_changed_checkpoint_is_converted_again(cache, checkpoint, notes):
    resolve(checkpoint, text_type="f32", note=notes.append)
    weights = next(checkpoint.glob("*.safetensors"))
    weights.touch()
    resolve(checkpoint, text_type="f32", note=notes.append)
    assert ["once" in line for line in notes if line.startswith("Converting")] == [True, False]
    assert "as it has changed" in notes[-1]
    assert len(cache.entries()) == 1


def test_two_checkpoints_of_one_name(cache, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "my-tune")
    pairs = {resolve(path, text_type="f32").text for path in (checkpoint, other)}
    assert len(pairs) == 2
    with pytest.raises(ModelNotFound, match=r"several models of that name .*my-tune-F32-\w{8}, my-tune-F32-"):
        resolve("my-tune-F32")
    for pair in pairs:
        assert resolve(pair.parent.name).text == pair


def test_a_stopped_conversion_leaves_nothing(cache, checkpoint):
    with pytest.raises(Cancelled):
        resolve(checkpoint, text_type="f32", progress=lambda done, total, what: done < total // 2)
    assert cache.entries() == []
    assert [p.name for p in cache.root.iterdir()] == [".locks"]


def test_load_takes_a_checkpoint(checkpoint):
    fractions = []
    with pyvllama.load(checkpoint, text_type="f32", progress=fractions.append) as llm:
        assert llm.logits([{"role": "user", "content": "Hi"}]).size > 0
    assert 0 <= min(fractions) <= max(fractions) == 1
    assert fractions.count(1.0) >= 2  # converted, loaded


def test_a_damaged_checkpoint(cache, checkpoint):
    next(checkpoint.glob("*.safetensors")).write_bytes(b"nonsense")
    with pytest.raises(pyvllama.CheckpointError):
        resolve(checkpoint)
    assert cache.entries() == []


# --- the Hub: which way is taken (the ways themselves: tests/cli/test_pull.py) ---


@pytest.mark.parametrize(
    ("name", "text_type", "files", "way"),
    [
        ("o/r", None, ["a-Q4_K_M.gguf", "mmproj-a.gguf"], ("pull", "o/r", None)),
        ("o/r", "q8_0", ["a-Q8_0.gguf", "mmproj-a.gguf"], ("pull", "o/r", "q8_0")),
        ("o/r:Q8_0", None, ["a-Q8_0.gguf", "model.safetensors"], ("pull", "o/r", "Q8_0")),
        ("o/r", None, ["a-Q8_0.gguf", "model.safetensors"], ("convert", "o/r")),
        ("o/r", None, ["model.safetensors", "config.json"], ("convert", "o/r")),
        ("o/r", None, ["consolidated.00.pth", "params.json"], ("convert", "o/r")),
        ("o/r", None, ["README.md"], ("convert", "o/r")),  # whose download says what is missing
        ("o/r", None, ["a.gguf", "original/consolidated.00.pth"], ("pull", "o/r", None)),
    ],
)
def test_ways(monkeypatch, name, text_type, files, way):
    taken = []
    monkeypatch.setattr(resolve_module, "list_files", lambda repo_id: Listing("c0ffee", tuple(files)))
    monkeypatch.setattr(resolve_module, "pull", lambda *a: taken.append(("pull", *a)) or pocket_pair())

    def convert(self, recipe, src):
        assert (recipe.kind, recipe.source, recipe.fingerprint) == ("hub", "o/r", "c0ffee")
        taken.append(("convert", src))
        return pocket_pair()

    monkeypatch.setattr(resolve_module._Maker, "_convert", convert)
    assert resolve(name, text_type=text_type) == pocket_pair()
    assert taken == [way]


def test_a_path_wins_over_the_hub(monkeypatch, tmp_path, tiny_pair):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve_module, "list_files", lambda _: pytest.fail("the Hub was asked"))
    shutil.copytree(tiny_pair("small").text.parent, tmp_path / "org" / "name")
    assert resolve("org/name").text.parent.name == "name"


def test_a_type_and_a_quant(monkeypatch):
    monkeypatch.setattr(resolve_module, "list_files", lambda _: Listing("c", ("a-Q8_0.gguf",)))
    with pytest.raises(ConfigError, match="o/r:Q8_0 is no checkpoint"):
        resolve("o/r:Q8_0", text_type="q4_k_m")


# --- Ollama: the import itself is tested elsewhere ---


@pytest.fixture
def store(monkeypatch, tmp_path, tiny_checkpoint, tiny_pair):
    """A store of Ollama's with one model."""
    store = ollama_store.Store(tmp_path / "ollama")
    pair = tiny_pair("small", "q8_0", "f16")
    store.add_model(ollama_store.build(tiny_checkpoint("small"), pair, "G3"), "llama3.2-vision:latest")
    monkeypatch.setenv("OLLAMA_MODELS", str(store.path))
    return store


def test_ollama_is_imported_once(cache, store, notes):
    pair = resolve("ollama:llama3.2-vision", note=notes.append)
    assert pair.text.is_relative_to(cache.root)
    assert any(line.startswith("Importing ollama:llama3.2-vision:latest into ") for line in notes)
    assert any("interleaved" in line for line in notes)  # what is not certain is said
    notes.clear()
    assert resolve("ollama:Llama3.2-Vision:latest", note=notes.append) == pair
    assert (notes, len(cache.entries())) == ([], 1)
    assert is_model_name("ollama:anything")
    with pyvllama.load("ollama:llama3.2-vision") as llm:
        assert llm.logits([{"role": "user", "content": "Hi"}]).size > 0

    manifest = store.manifest_path()
    manifest.write_text(manifest.read_text() + " ")  # pulled again
    resolve("ollama:llama3.2-vision", note=notes.append)
    assert any(line.startswith("Importing") for line in notes)
    shutil.rmtree(store.path)  # Ollama is gone, what was imported is not
    assert resolve("ollama:llama3.2-vision").text.is_file()
    with pytest.raises(ModelNotFound, match="other"):
        resolve("ollama:other")
    with pytest.raises(ConfigError, match="text_type"):
        resolve("ollama:llama3.2-vision", text_type="q8_0")


def test_what_is_no_name_of_a_model():
    for word in ("Hello", "ollama: what is it?", "", "What is this?", "x" * 5000, "a\0b"):
        assert not is_model_name(word)
