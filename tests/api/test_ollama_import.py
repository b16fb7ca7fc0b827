"""A model imported from Ollama answers like the one converted from the checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ollama_store
import pytest
from talk import text_of, user

import pyvllama

GREEDY = {"temperature": 0, "max_tokens": 96}


@pytest.fixture(scope="module", params=["G1", "G3"])
def models(
    request: pytest.FixtureRequest,
    pocket_checkpoint: Path,
    pocket_pairs: Callable[..., Any],
    module_path: Path,
) -> Any:
    """(imported, converted), both loaded; Q4_K_M with a tower in Q4_K, as Ollama's library has some."""
    work = module_path / request.param
    converted = pocket_pairs("q4_k_m", "q4_k")
    model = ollama_store.build(pocket_checkpoint, converted, request.param)
    template = json.loads((pocket_checkpoint / "chat_template.json").read_text())["chat_template"]
    model.text_keys["tokenizer.chat_template"] = template
    store = ollama_store.Store(work / "ollama")
    store.add_model(model, "me/pocket:q4_K_M")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(store.path))
        imported = pyvllama.convert("ollama:me/pocket:q4_K_M", work / "out")
    assert [path.name for path in (imported.text, imported.mmproj)] == ["pocket-Q4_K_M.gguf", "mmproj-pocket-Q4_K.gguf"]
    options = {"n_ctx": 512, "n_threads": 1}
    with (
        pyvllama.load(work / "out", **options) as ours,
        pyvllama.load(converted.text, converted.mmproj, **options) as theirs,
    ):
        yield ours, theirs


def test_answers_to_the_samples(models: tuple[pyvllama.LLM, pyvllama.LLM], samples: list[dict[str, Any]]) -> None:
    imported, converted = models
    wrong = []
    for sample in samples[:12]:
        messages = [user(sample["path"], sample["qa"][0]["question"])]
        answer = text_of(imported.chat(messages, **GREEDY))
        assert answer == text_of(converted.chat(messages, **GREEDY))
        if answer != sample["qa"][0]["expected"]:
            wrong.append((sample["image"], answer, sample["qa"][0]["expected"]))
    assert wrong == []


def test_logits(models: tuple[pyvllama.LLM, pyvllama.LLM], samples: list[dict[str, Any]]) -> None:
    """All that may differ is one unit in the last place of a rotary factor."""
    imported, converted = models
    messages = [user("Look:", samples[0]["path"], samples[0]["qa"][0]["question"])]
    ours, theirs = imported.logits(messages), converted.logits(messages)
    assert np.abs(ours - theirs).max() <= 1e-3 * np.sqrt(np.mean(theirs**2))


def test_states_of_a_picture(models: tuple[pyvllama.LLM, pyvllama.LLM], samples: list[dict[str, Any]]) -> None:
    """The tower's bytes are the same, so its numbers are."""
    ours, theirs = (llm.encode_image(samples[3]["path"]) for llm in models)
    np.testing.assert_array_equal(ours, theirs)
