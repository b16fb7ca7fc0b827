"""Names, manifests and blobs of an Ollama store, right and wrong ones."""

import json
import sys
from pathlib import Path
from typing import Any

import ollama_store
import pytest

from pyvllama.conversion import ollama_store as package
from pyvllama.conversion.ollama_store import ModelName, find_model, is_ollama, store_paths
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound

LAYERS = [("model", b"the model"), ("template", b"{{ .Prompt }}"), ("license", b"MIT"), ("license", b"Apache")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ollama_store.Store:
    """A store with one model, the only one that is looked at."""
    made = ollama_store.Store(tmp_path / "ollama")
    made.add("llama3.2-vision:latest", LAYERS)
    monkeypatch.setenv("OLLAMA_MODELS", str(made.path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(package, "_SERVICE_STORES", ())
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llama3.2-vision", ("registry.ollama.ai", "library", "llama3.2-vision", "latest")),
        ("llama3.2-vision:11b-q4_K_M", ("registry.ollama.ai", "library", "llama3.2-vision", "11b-q4_K_M")),
        ("me/eyes", ("registry.ollama.ai", "me", "eyes", "latest")),
        ("me/eyes:v2", ("registry.ollama.ai", "me", "eyes", "v2")),
        ("example.org/me/eyes:v2", ("example.org", "me", "eyes", "v2")),
        ("localhost:5000/me/eyes", ("localhost:5000", "me", "eyes", "latest")),
        ("https://example.org/me/eyes:v2", ("example.org", "me", "eyes", "v2")),
    ],
)
def test_names(text: str, expected: tuple[str, ...]) -> None:
    name = ModelName.parse(text)
    assert (name.host, name.namespace, name.model, name.tag) == expected
    assert ModelName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:",
        ":b",
        "a/b/c/d",
        "../../etc/passwd",
        "..",
        "a/..",
        "a:../b",
        "a:..",
        "a//b",
        "/a",
        "a b",
        "a\0b",
        "a@b",
    ],
)
def test_no_names(text: str, store: ollama_store.Store) -> None:
    with pytest.raises(ConfigError, match=r"is no name of an Ollama model: \[HOST/\]"):
        find_model(f"ollama:{text}")


def test_only_a_str_with_the_prefix_is_a_name() -> None:
    assert is_ollama("ollama:x")
    assert not is_ollama("ollama")
    assert not is_ollama(Path("ollama:x"))


def test_layers_by_kind(store: ollama_store.Store) -> None:
    manifest = find_model("ollama:LLAMA3.2-Vision:Latest")  # Ollama compares names without case
    assert [blob.text() for blob in manifest.blobs("license")] == ["MIT", "Apache"]
    assert [blob.size for blob in manifest.blobs("model")] == [9]
    assert manifest.blobs("projector") == []


def test_where_stores_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    assert store_paths()[:2] == [tmp_path / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    assert store_paths()[:2] == [tmp_path / "elsewhere", tmp_path / ".ollama/models"]


def test_several_stores(store: ollama_store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama_store.Store(tmp_path / "home/.ollama/models").add("other:1b", LAYERS)
    service = ollama_store.Store(tmp_path / "service")
    service.add("third:1b", LAYERS)
    monkeypatch.setattr(package, "_SERVICE_STORES", (str(service.path), str(tmp_path / "none")))
    assert find_model("third:1b").path == service.manifest_path("third:1b")
    with pytest.raises(ModelNotFound, match=r"there is llama3.2-vision:latest, other:1b, third:1b$"):
        find_model("other")


def test_unknown_model_lists_what_there_is(store: ollama_store.Store) -> None:
    store.add("example.org/me/eyes:v2", LAYERS)
    store.add("me/eyes:v3", LAYERS)
    with pytest.raises(ModelNotFound) as e:
        find_model("ollama:llama3.2-vision:90b")
    assert str(e.value) == (
        f"no model llama3.2-vision:90b in {store.path}: "
        "there is example.org/me/eyes:v2, llama3.2-vision:latest, me/eyes:v3"
    )


def test_no_store_tells_where_was_looked(
    tmp_path: Path, store: ollama_store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFound, match=rf"no Ollama store in {tmp_path}/nowhere, {tmp_path}/home/.*OLLAMA_MODELS"):
        find_model("ollama:llama3.2-vision")


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_store_of_another_user(tmp_path: Path, store: ollama_store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelNotFound, match=rf"{store.path} cannot be read: Permission denied"):
        find_model("ollama:llama3.2-vision")


def test_early_names_of_blobs(store: ollama_store.Store) -> None:
    blob = store.layer("model")
    blob.rename(blob.with_name(blob.name.replace("-", ":")))
    assert find_model("llama3.2-vision").blobs("model")[0].size == 9


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", "\xff\xfe", "[" * 100_000),
        *('{"layers": 3}', '{"layers": [3]}', '{"layers": [{}]}', '{"layers": null}'),
        '{"layers": [{"mediaType": 3, "digest": "", "size": 0}]}',
    ],
)
def test_garbage_for_a_manifest(text: str, store: ollama_store.Store) -> None:
    path = store.manifest_path()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"{path} is no manifest as Ollama writes it; `ollama pull"):
        find_model("llama3.2-vision")


def test_a_huge_manifest_is_not_read(store: ollama_store.Store) -> None:
    store.manifest_path().write_bytes(b" " * (5 << 20))
    with pytest.raises(CheckpointError, match="no manifest: it has 5242880 bytes"):
        find_model("llama3.2-vision")


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "sha256:../../../../etc/passwd"},
        {"digest": "sha256:" + "g" * 64},
        {"digest": "sha256:" + "a" * 64 + "/../x"},
        {"digest": "md5:" + "a" * 32},
        {"digest": None},
        {"digest": ["sha256:" + "a" * 64]},
        {"size": "9"},
        {"size": -1},
        {"size": True},
        {"size": None},
    ],
)
def test_hostile_layers(wrong: dict[str, Any], store: ollama_store.Store) -> None:
    store.edit_manifest(lambda manifest: manifest["layers"][0].update(wrong))
    with pytest.raises(CheckpointError, match=rf"{store.manifest_path()}: a layer has the digest .* and the size"):
        find_model("llama3.2-vision")


def test_a_truncated_blob(store: ollama_store.Store) -> None:
    store.layer("model").write_bytes(b"the mod")
    with pytest.raises(CheckpointError, match=r"sha256-\w+ has 7 bytes, but .* states 9: `ollama pull` it again"):
        find_model("llama3.2-vision")


def test_a_missing_blob(store: ollama_store.Store) -> None:
    store.layer("license").unlink()
    with pytest.raises(CheckpointError, match=r"sha256-\w+ is missing .*`ollama pull` it again"):
        find_model("llama3.2-vision")


def test_a_directory_for_a_blob(store: ollama_store.Store) -> None:
    blob = store.layer("model")
    blob.unlink()
    blob.mkdir()
    size = blob.stat().st_size
    store.edit_manifest(lambda manifest: manifest["layers"][0].update(size=size))
    with pytest.raises(CheckpointError, match=rf"has {size} bytes"):
        find_model("llama3.2-vision")


def test_a_text_that_is_not_what_its_name_says(store: ollama_store.Store) -> None:
    store.layer("template").write_bytes(b"{{ .Pr0mpt }}")
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is"):
        find_model("llama3.2-vision").blobs("template")[0].text()


def test_a_text_of_gigabytes(store: ollama_store.Store) -> None:
    store.add("big:latest", [("params", b"{}" + b" " * (2 << 20))])
    with pytest.raises(CheckpointError, match="2097154 bytes are no text"):
        find_model("big").blobs("params")[0].text()


def test_strange_files_beside_manifests(store: ollama_store.Store) -> None:
    (store.manifest_path().parent / ".DS_Store").write_bytes(b"x")
    (store.path / "manifests/registry.ollama.ai/library/stray").write_text(json.dumps({}))
    with pytest.raises(ModelNotFound, match=r"there is llama3.2-vision:latest$"):
        find_model("nothing")
