"""Which models there are and which are in memory, by Ollama's own Python client."""

from datetime import datetime, timezone

import httpx
import ollama
import pytest
from ollama_server import ANSWER, GREEDY, N_CTX, NAME, ask, serving
from shell import wait_until

from pyvllama._runtime import native
from pyvllama.errors import FormatError


def test_load_and_unload(ollama_client, ollama_server):
    pool = ollama_server.app.state.pool
    for load in (lambda **o: ollama_client.generate(NAME, **o), lambda **o: ollama_client.chat(NAME, **o)):
        assert load(keep_alive=0).done_reason == "unload"
        assert ollama_client.ps().models == []
        assert pool.loaded() == []
        assert load(keep_alive=0).done_reason == "unload"  # it was not there
        assert load().done_reason == "load"
        (running,) = ollama_client.ps().models
        assert running.model == f"{NAME}:latest"


def test_keep_alive(ollama_client, picture):
    def left_s():
        (running,) = ollama_client.ps().models
        return (running.expires_at - datetime.now(timezone.utc)).total_seconds()

    ollama_client.chat(NAME, [], keep_alive="10m")
    assert 590 < left_s() <= 600
    ollama_client.generate(NAME, "Hello!", keep_alive=30, options={"num_predict": 1})
    assert 20 < left_s() <= 30
    ollama_client.chat(NAME, [], keep_alive=-1)
    assert left_s() > 1e9
    ollama_client.chat(NAME, [ask("Describe the image.", picture)], keep_alive=0, options=GREEDY)
    wait_until(lambda: ollama_client.ps().models == [])
    assert (
        ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, keep_alive=-1).message.content
        == ANSWER
    )


def test_list(ollama_client, ollama_server):
    listed = ollama_client.list().models
    assert [model.model for model in listed] == [f"{NAME}:latest"]
    (model,) = listed
    card = ollama_server.app.state.pool.card(None)
    assert model.size == card.n_bytes == sum(path.stat().st_size for path in (card.pair.text, card.pair.mmproj))
    assert model.modified_at == card.modified
    assert len(model.digest) == 64
    details = model.details
    assert (details.format, details.family, details.families) == ("gguf", "mllama", ["mllama"])
    assert (details.parameter_size, details.quantization_level) == ("12.74M", "Q4_K_M")


def test_an_alias_beside_the_first_name():
    with serving(aliases=("one", "two:11b")) as running, ollama.Client(host=running.url) as ollama_client:
        assert sorted(model.model for model in ollama_client.list().models) == ["one:latest", "two:11b"]
        assert len({model.digest for model in ollama_client.list().models}) == 1
        for name in ("one", "one:latest", "two:11b", "TWO:11b", "pocket-vllama"):
            assert ollama_client.chat(name, [ask("Hello!")], options=GREEDY).model == name
        with pytest.raises(ollama.ResponseError):
            ollama_client.chat("two", [ask("Hello!")])


def test_show(ollama_client, ollama_server):
    model = ollama_client.show(NAME)
    info = model.modelinfo
    assert info["general.architecture"] == "llama"
    assert info["llama.context_length"] == 131072
    assert info["general.parameter_count"] == 12_736_685
    assert info["tokenizer.ggml.tokens"] == []  # long: with verbose only
    assert "general.name" not in info
    assert "tokenizer.chat_template" not in info
    assert set(model.capabilities) == {"completion", "vision", "tools"}
    assert "start_header_id" in model.template
    assert model.parameters == f"{'temperature':<30} 0"
    assert model.details.family == "mllama"
    raw = httpx.post(f"{ollama_server.url}/api/show", json={"name": NAME, "verbose": True}).json()
    assert len(raw["model_info"]["tokenizer.ggml.tokens"]) > 1000
    assert raw["projector_info"]["clip.projector_type"] == "mllama"
    tensors = {t["name"]: t for t in raw["tensors"]}
    assert tensors["token_embd.weight"]["shape"][0] == info["llama.embedding_length"]  # ggml's order
    assert "v.patch_embd.weight" in tensors


def test_ps(ollama_client):
    ollama_client.chat(NAME, [], keep_alive=-1)
    (model,) = ollama_client.ps().models
    assert (model.model, model.name, model.context_length) == (f"{NAME}:latest", f"{NAME}:latest", N_CTX)
    assert model.size == ollama_client.list().models[0].size
    assert model.size_vram == 0
    assert model.digest == ollama_client.list().models[0].digest


def test_memory_of_a_gpu():
    """What was asked for counts only where there is one; see tests/devices for how much then."""
    with serving(aliases=(NAME,), n_gpu_layers=-1) as running, ollama.Client(host=running.url) as ollama_client:
        ollama_client.chat(NAME, [])
        (model,) = ollama_client.ps().models
        assert model.size_vram == (model.size if native.offload_devices() else 0)


def test_a_model_in_memory_whose_files_are_gone(ollama_client, monkeypatch):
    from pyvllama.server.ollama import models

    def gone(_):
        raise FormatError("no such file")

    ollama_client.chat(NAME, [], keep_alive=-1)
    monkeypatch.setattr(models, "details_of", gone)
    (model,) = ollama_client.ps().models
    assert (model.model, model.details.quantization_level) == (f"{NAME}:latest", "Q4_K_M")
    assert ollama_client.list().models == []  # cannot be loaded any more


def test_version_and_life_signs(ollama_server):
    body = httpx.get(f"{ollama_server.url}/api/version").json()
    assert body["version"] == "0.24.0"
    assert body["server"].startswith("pyvllama ")  # who it really is
    for path in ("/", "/api/version", "/api/tags"):
        response = httpx.head(f"{ollama_server.url}{path}")
        assert (response.status_code, response.content) == (200, b"")
