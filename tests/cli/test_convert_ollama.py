"""`pyvllama convert ollama:NAME`: what it prints, and what it refuses."""

from pathlib import Path

import ollama_store
import pytest
from refusals import assert_misused, assert_refused

from pyvllama.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def store_path(tiny_checkpoint, tiny_pair, module_path):
    """A store with one model."""
    store = ollama_store.Store(module_path)
    pair = tiny_pair("small", "q8_0", "f16")
    store.add_model(ollama_store.build(tiny_checkpoint("small"), pair, "G3"), "llama3.2-vision:11b-instruct-q8_0")
    return store.path


@pytest.fixture(autouse=True)
def named(store_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(store_path))


MODEL = "ollama:llama3.2-vision:11b-instruct-q8_0"


def test_two_files_and_notes(cli, tmp_path):
    result = cli("convert", MODEL, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    paths = [Path(line.split("  ")[0]) for line in result.stdout.splitlines()]
    name = "llama3.2-vision-11b-instruct"
    assert [path.name for path in paths] == [f"{name}-Q8_0.gguf", f"mmproj-{name}-F16.gguf"]
    template, order = result.stderr.splitlines()
    assert template == "The chat template is the one of Llama 3.2 Vision: Ollama's own is in another language."
    assert "interleaved" in order
    assert "--cross-qk-order plain" in order
    assert cli("show", tmp_path).exit_code == 0


def test_plain_rows(cli, tmp_path):
    for order in ("plain", "interleaved"):
        assert cli("convert", MODEL, "-o", tmp_path / order, "--cross-qk-order", order).exit_code == 0
    files = [GGUFFile(next((tmp_path / order).glob("mmproj*"))) for order in ("plain", "interleaved")]
    name = "xattn.blk.2.attn_q.weight"
    rows = [sorted(map(bytes, file.raw(name))) for file in files]
    assert rows[0] == rows[1]
    assert (files[0].raw(name) != files[1].raw(name)).any()


def test_dry_run(cli, tmp_path):
    result = cli("convert", MODEL, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "blk.2.cross_attn_q_proj.weight" in result.stdout
    assert not (tmp_path / "out").exists()


def test_refusals(cli, tmp_path):
    assert_refused(cli("convert", "ollama:nothing", "-o", tmp_path), "no model nothing:latest in .*there is llama3.2-v")
    assert_refused(cli("convert", "ollama:../x", "-o", tmp_path), "is no name of an Ollama model")
    assert_refused(
        cli("convert", MODEL, "-o", tmp_path, "-q", "q4_k_m"), "requantizes nothing, so it takes no text_type"
    )
    assert_misused(cli("convert", MODEL, "-o", tmp_path, "--cross-qk-order", "odd"), "'odd' is not one of")
    assert list(tmp_path.iterdir()) == []
