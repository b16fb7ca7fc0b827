"""What the import refuses: other models, faulty generations, damaged files, options without a meaning."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import ollama_store
import pytest
from ollama_store import Model, Tensor

import pyvllama
from pyvllama.conversion import ollama_tensors
from pyvllama.conversion.ollama import import_ollama
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.errors import Cancelled, CheckpointError, ConfigError, FormatError, VllamaError
from pyvllama.types import Pair


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ollama_store.Store:
    made = ollama_store.Store(tmp_path / "ollama")
    monkeypatch.setenv("OLLAMA_MODELS", str(made.path))
    return made


@pytest.fixture(scope="module")
def tiny(module_path: Path) -> tuple[Path, Pair]:

    def small_gates(name: str, values: np.ndarray) -> np.ndarray:
        """Below 1, all of them: nothing to see of a missing tanh."""
        return values / 2 if "gate" in name and values.shape == (1,) else values

    checkpoint = factories.write_checkpoint(module_path / "checkpoint", "small", edit=small_gates)
    return checkpoint, pyvllama.convert(checkpoint, module_path, text_type="q8_0", mmproj_type="f16")


def refuse(model: Model, store: ollama_store.Store, out_dir: Path, kind: type[VllamaError], pattern: str) -> None:
    store.add_model(model)
    with pytest.raises(kind, match=pattern):
        import_ollama("llama3.2-vision", out_dir / "out")
    assert not (out_dir / "out").exists()


def test_g2_by_a_gate_above_one(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G2", cross_qk="plain")
    model.vision["v.global.blk.0.attn_gate"] = Tensor.of([1.25])
    model.text_keys["tokenizer.ggml.eos_token_ids"] = np.array([1, 2], np.int32)
    refuse(
        model, store, tmp_path, ConfigError, r"for some days in May 2025 \(a gate .* above 1\).*`ollama pull` it again"
    )


def test_g2_by_missing_stop_tokens(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G2", cross_qk="plain")
    refuse(model, store, tmp_path, ConfigError, r"no tokenizer.ggml.eos_token_ids\).*`ollama pull` it again")


def test_a_known_digest_decides(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ollama_store.build(*tiny, "G3")
    del model.text_keys["tokenizer.ggml.eos_token_ids"]
    refuse(model, store, tmp_path, ConfigError, "eos_token_ids")
    digest = store.layer("model").name.removeprefix("sha256-")
    monkeypatch.setitem(ollama_tensors.KNOWN_BLOBS, digest, ollama_tensors.Generation.G3)
    assert import_ollama("ollama:llama3.2-vision", tmp_path / "out").text.exists()


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "clip"])
def test_another_architecture(
    architecture: str, tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.text_keys["general.architecture"] = architecture
    refuse(
        model,
        store,
        tmp_path,
        ConfigError,
        f"ollama:llama3.2-vision:latest is of the architecture '{architecture}', not",
    )


def test_a_projector_of_another_architecture(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G1")
    model.vision_keys["general.architecture"] = "clip"
    refuse(model, store, tmp_path, ConfigError, "architecture 'clip', not 'mllama'")


def test_a_text_file_alone(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G1"))
    store.edit_manifest(lambda m: m.update(layers=[x for x in m["layers"] if "projector" not in x["mediaType"]]))
    with pytest.raises(FormatError, match="has no vision tower"):
        import_ollama("llama3.2-vision", tmp_path)


@pytest.mark.parametrize("kind", ["model", "projector"])
def test_two_layers_of_a_kind(kind: str, tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G1"))
    store.edit_manifest(lambda m: m["layers"].append(next(x for x in m["layers"] if kind in x["mediaType"])))
    with pytest.raises(CheckpointError, match=r"lists . models and . projectors, not one"):
        import_ollama("llama3.2-vision", tmp_path)


def test_no_model_layer(store: ollama_store.Store, tmp_path: Path) -> None:
    store.add("llama3.2-vision:latest", [("template", b"x")])
    with pytest.raises(CheckpointError, match="lists 0 models"):
        import_ollama("llama3.2-vision", tmp_path)


def test_a_lora_beside_it(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.layers = [("adapter", b"GGUF")]
    refuse(model, store, tmp_path, ConfigError, "with a LoRA beside it")


def drop(*names: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for name in names:
            del (model.text if name in model.text else model.vision)[name]

    return change


def add(name: str) -> Callable[[Model], None]:
    return lambda model: model.text.update({name: Tensor.of([1.0])})


def key(name: str, value: Any) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        keys = model.vision_keys if ".vision." in name else model.text_keys
        if value is None:
            del keys[name]
        else:
            keys[name] = value

    return change


def tensor(name: str, values: Any) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        (model.text if name in model.text else model.vision)[name] = Tensor.of(values)

    return change


def resize_output(model: Model) -> None:
    output = model.text["output.weight"]
    model.text["output.weight"] = Tensor(output.raw[:-1], output.type, (output.shape[0] - 1, output.shape[1]))


def double_token(model: Model) -> None:
    model.text_keys["tokenizer.ggml.tokens"][0] = model.text_keys["tokenizer.ggml.tokens"][1]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            drop("rope_freqs.weight"),
            r"badly converted, .*transformers 5 .*\(missing: rope_freqs.weight\): convert the check",
        ),
        (add("model.language_model.layers.0.x"), r"badly converted.*\(unknown: model.language_model.layers.0.x\)"),
        (drop("blk.2.cross_attn_q_norm.weight", "mm.0.bias"), "missing: .*mm.0.bias"),
        (drop("v.position_embd.gate"), "missing: v.position_embd.gate"),
        (tensor("v.position_embd.gate", [0.5]), r"v.position_embd.gate \+ v.tile_position_embd.gate is .*, not 1"),
        (tensor("v.tile_position_embd.gate", [np.nan]), "v.tile_position_embd.gate holds numbers that are not finite"),
        (tensor("v.pre_tile_position_embd.gate", [1.5]), "pre_tile_position_embd.gate is 1.5, which is no tanh"),
        (tensor("output_norm.weight", [np.inf] * 128), "output_norm.weight holds numbers that are not finite"),
        (tensor("output_norm.weight", [1.0] * 127), r"output_norm.weight has the shape \(127,\), not \(128,\)"),
        (resize_output, "the embedding has 328 rows and the output 319, not 8 less"),
        (double_token, "a token's text occurs twice"),
        (key("mllama.block_count", None), "no valid keys of a Llama 3.2 Vision model: .*missing num_hidden_layers"),
        (key("mllama.block_count", np.uint32(2**31)), "no valid keys"),
        (key("mllama.attention.cross_attention_layers", np.array([0, 99], np.int32)), "no valid keys"),
        (key("mllama.vision.max_num_tiles", np.uint32(10**6)), "keys of the vision tower are missing or wrong"),
        (key("mllama.vision.intermediate_layers_indices", "x"), "keys of the vision tower are missing or wrong"),
        (key("mllama.vision.patch_size", np.uint32(5)), "no valid keys"),
        (key("mllama.vision.image_size", np.uint32(28)), "has the shape"),
        (key("mllama.vision.num_channels", np.uint32(1)), "no valid keys"),
        (key("tokenizer.ggml.pre", "default"), r"the tokenizer is 'gpt2' / 'default', not Llama 3's"),
        (key("tokenizer.ggml.model", "llama"), "not Llama 3's"),
        (key("tokenizer.ggml.tokens", ["a"]), "1 tokens and 321 types of tokens"),
        (key("tokenizer.ggml.token_type", None), "token_type is missing"),
        (drop("token_embd.weight"), "the embedding has 0 rows"),
        (key("tokenizer.ggml.merges", "a b"), "merges is missing or no list"),
        (key("tokenizer.ggml.bos_token_id", np.uint32(10**6)), "bos_token_id is 1000000 of"),
        (key("tokenizer.ggml.eos_token_id", None), "no bos or no eos token"),
        (key("tokenizer.ggml.scores", np.arange(1, 322, dtype=np.float32)), "not numbered without gaps"),
    ],
)
@pytest.mark.parametrize("generation", ["G1", "G3"])
def test_damaged_files(
    generation: str,
    change: Callable[[Model], None],
    pattern: str,
    tiny: tuple[Path, Pair],
    store: ollama_store.Store,
    tmp_path: Path,
) -> None:
    model = ollama_store.build(*tiny, generation)
    change(model)
    refuse(model, store, tmp_path, FormatError, pattern)


def test_an_image_token_at_another_place(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.text_keys["tokenizer.ggml.tokens"][-1] = "<|something|>"
    refuse(model, store, tmp_path, FormatError, r"token 320 is '<\|something\|>', not <\|image\|>")


def test_a_gguf_cut_short_and_stated_so(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    blob = store.layer("model")
    raw = blob.read_bytes()[:-1000]
    blob.write_bytes(raw)
    store.edit_manifest(lambda manifest: manifest["layers"][0].update(size=len(raw)))
    with pytest.raises(FormatError, match="it is truncated"):
        import_ollama("llama3.2-vision", tmp_path)


@pytest.mark.parametrize("params", [b"", b"[]", b"{", b"\xff"])
def test_parameters_that_are_none(
    params: bytes, tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.layers = [("params", params)]
    refuse(model, store, tmp_path, CheckpointError, "the parameters are no JSON")


@pytest.mark.parametrize(
    "options",
    [
        {"text_type": "q4_k_m"},
        {"mmproj_type": "f16", "cross_type": "q8_0"},
        {"tensor_types": ["a=f16"], "revision": "main"},
        {"imatrix": "imatrix.gguf"},
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"requantizes nothing, so it takes no {', '.join(options)}$"):
        plan_conversion("ollama:llama3.2-vision", tmp_path, **options)


def test_an_order_of_rows_of_a_checkpoint(pocket_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cross_qk_order = 'plain': .* is no model of Ollama's"):
        plan_conversion(pocket_checkpoint, tmp_path, cross_qk_order="plain")


def test_an_unknown_order_of_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cross_qk_order = 'sorted' is not supported: interleaved or plain"):
        plan_conversion("ollama:llama3.2-vision", tmp_path, cross_qk_order="sorted")


def test_stopped(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    with pytest.raises(Cancelled):
        import_ollama("llama3.2-vision", tmp_path / "out", progress=lambda done, total, _: done < total / 2)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_file_is_kept(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    pair = import_ollama("llama3.2-vision", tmp_path)
    before = pair.text.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=re.escape(f"{pair.text} and {pair.mmproj} exist already")):
        import_ollama("llama3.2-vision", tmp_path)
    assert pair.text.stat().st_mtime_ns == before
    assert import_ollama("llama3.2-vision", tmp_path, overwrite=True) == pair
