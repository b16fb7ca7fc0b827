"""-ngl and --no-mmproj-offload: every command that loads a model passes them on."""

import json

import pytest
from refusals import assert_misused

from pyvllama import model as model_module

OPTIONS = ("-ngl", "3", "--no-mmproj-offload", "-t", "1")


@pytest.fixture
def placed(monkeypatch):
    """What was asked of every placement: (n_gpu_layers, mmproj_offload)."""
    asked = []
    place = model_module.place

    def record(n_layers, n_gpu_layers, *, mmproj_offload, n_tower_bytes):
        asked.append((n_gpu_layers, mmproj_offload))
        return place(n_layers, n_gpu_layers, mmproj_offload=mmproj_offload, n_tower_bytes=n_tower_bytes)

    monkeypatch.setattr(model_module, "place", record)
    return asked


@pytest.fixture
def commands(pair, picture, tmp_path):
    """Each command that loads a model, with little to do."""
    chats = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there."}]
    chats.write_text(json.dumps({"messages": chat}) + "\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture.read_bytes())
    return {
        "run": ("run", pair.text, "Hello", "--max-tokens", 1),
        "bench": ("bench", pair.text, "-p", 2, "-n", 0, "-r", 1, "--tiles", 0),
        "caption": ("caption", tmp_path / "photos", "-o", tmp_path / "c.jsonl", "-m", pair.text, "--max-tokens", 1),
        "imatrix": ("imatrix", pair.text, "-d", chats, "-o", tmp_path),
        "eval": ("eval", pair.text, "-r", pair.text, "-d", chats),
    }


@pytest.mark.parametrize("command", ["run", "bench", "caption", "imatrix", "eval"])
def test_they_arrive(cli, commands, placed, command):
    result = cli(*commands[command], *OPTIONS)
    assert result.exit_code == 0, result.output
    assert set(placed) == {(3, False)}
    placed.clear()
    assert cli(*commands[command], "-t", 1, *(["--overwrite"] if command == "imatrix" else [])).exit_code == 0
    assert set(placed) <= {(0, True)}


@pytest.mark.parametrize("command", ["run", "serve", "bench", "caption", "imatrix", "eval"])
@pytest.mark.parametrize("n", ["-2", "4294967296", "all"])
def test_numbers_that_are_none(cli, command, n):
    needed = {"caption": ["x", "-o", "y"], "imatrix": ["-d", "x", "-o", "y"], "eval": ["-d", "x", "-r", "y"]}
    result = cli(command, *needed.get(command, []), "--gpu-layers", n)
    assert_misused(result, "'-ngl' / '--gpu-layers' / '--n-gpu-layers'")


@pytest.mark.parametrize("command", ["run", "serve", "caption", "imatrix", "eval", "show", "doctor"])
def test_a_context_that_llama_cpp_cannot_count(cli, command):
    needed = {"caption": ["x", "-o", "y"], "imatrix": ["-d", "x", "-o", "y"], "eval": ["-d", "x", "-r", "y"]}
    result = cli(command, *needed.get(command, []), "-c", 1 << 31)
    assert_misused(result, "2147483648 is not in the range")
