"""Every option of llama_cpp.Llama's constructor does to ours what it does to the original."""

import ctypes
import inspect

import lora_files
import numpy as np
import pytest
from tiny_configs import CONFIGS

from pyvllama._runtime import llama_cpp
from pyvllama.conversion import convert
from pyvllama.conversion.lora_gguf import convert_lora

GUESSER = object()
TOKENIZER = type("Tokenizer", (), {})()
# Another value than the default; what C is given, or what the object keeps, must change by it.
OTHER = {
    "n_gpu_layers": 3,
    "split_mode": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "main_gpu": 0,  # of the machine's GPUs, of which there may be none
    "tensor_split": [0.5],
    "vocab_only": True,
    "use_mmap": False,
    "use_mlock": True,
    "kv_overrides": {"llama.context_length": 1000},
    "seed": 11,
    "n_ctx": 256,
    "n_batch": 32,
    "n_ubatch": 16,
    "n_threads": 2,
    "n_threads_batch": 2,
    "rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    "attention_type": llama_cpp.LLAMA_ATTENTION_TYPE_CAUSAL,
    "rope_freq_base": 5000.0,
    "rope_freq_scale": 0.5,
    "yarn_ext_factor": 0.5,
    "yarn_attn_factor": 0.5,
    "yarn_beta_fast": 16.0,
    "yarn_beta_slow": 2.0,
    "yarn_orig_ctx": 128,
    "logits_all": True,
    "embedding": True,
    "offload_kqv": False,
    "flash_attn": True,
    "op_offload": False,
    "swa_full": False,
    "no_perf": True,
    "last_n_tokens_size": 7,
    "lora_base": "base",
    "lora_scale": 0.5,
    "chat_format": "chatml",
    "chat_handler": print,
    "draft_model": GUESSER,
    "tokenizer": TOKENIZER,
    "type_k": 8,
    "type_v": 0,
    "spm_infill": True,
    "verbose": True,
}
ELSEWHERE = {
    "self": "",
    "model_path": "every other test",
    "numa": "test_numa",
    "lora_path": "test_a_lora_adapter",
    "kwargs": "takes any name, and does nothing with it",
}
NO_DIFFERENCE = {"main_gpu"}  # 0 is the default
HOOK = {"cb_eval", "cb_eval_user_data", "abort_callback", "abort_callback_data"}


def plain(value):
    """A field's value, so that two of them compare."""
    if isinstance(value, ctypes._Pointer):
        return value[0] if value and isinstance(value[0], float) else bool(value)
    return value if isinstance(value, (bool, int, float)) else bool(value)


def fields(struct):
    return {name: plain(getattr(struct, name)) for name, *_ in struct._fields_ if name not in HOOK}


@pytest.fixture
def given(monkeypatch):
    """What C was given by the last model and by the last context: field -> value."""
    found = {}
    for function in ("llama_model_load_from_file", "llama_init_from_model"):
        original = getattr(llama_cpp.llama_cpp, function)

        def record(owner, params, original=original, function=function):
            found[function] = fields(params)
            return original(owner, params)

        monkeypatch.setattr(llama_cpp.llama_cpp, function, record)
    return found


def settings(llama):
    """What a Llama keeps of its options; what holds a tokenizer is told by that."""
    state = llama_cpp.Llama.__getstate__(llama)
    return {**state, "tokenizer": llama.tokenizer_ is TOKENIZER}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", OTHER)
def test_it_arrives(make, make_original, given, option):
    ours, by_ours = make(**{option: OTHER[option]}), given.copy()
    given.clear()
    theirs, by_theirs = make_original(**{option: OTHER[option]}), given.copy()
    assert by_ours == by_theirs
    if option != "chat_handler":  # without one, ours has one of its own
        ours.chat_handler = theirs.chat_handler
    assert settings(ours) == settings(theirs)
    given.clear()
    without = make_original()
    changed = given != by_theirs or settings(without) != settings(theirs)
    assert changed != (option in NO_DIFFERENCE), "a value that changes nothing tests nothing"


def test_every_option_is_tested():
    assert inspect.signature(llama_cpp.Llama.__init__).parameters.keys() == OTHER.keys() | ELSEWHERE.keys()


def test_numa(make, monkeypatch):
    asked = []
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_numa_init", asked.append)
    assert make(numa=True).numa == llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE
    assert asked == [llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE]


def test_a_lora_adapter(make, make_original, tiny_checkpoint, tiny_pair, tmp_path):
    """Also with a picture: what merging it into the text model's layers gives."""
    base, text = tiny_checkpoint("small"), tiny_pair("small").text
    adapter = lora_files.write_adapter(tmp_path / "adapter", lora_files.text_modules(CONFIGS["small"]))
    file = convert_lora(adapter, tmp_path / "lora", base=base, type="f32")
    merged = convert(base, tmp_path / "merged", lora=[adapter], text_type="f32", mmproj_type="f32")
    picture = np.zeros((40, 60, 3), np.uint8)
    asked = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]

    def scores(llama, tokens):
        llama.reset()
        llama.eval(tokens)
        return llama.scores[: len(tokens)].copy()

    options = {"logits_all": True, "type_k": 0, "type_v": 0}
    ours = make(text, lora_path=str(file), **options)
    words = ours.tokenize(b"Hello")
    theirs = make_original(text, lora_path=str(file), **options)
    np.testing.assert_array_equal(scores(ours, words), scores(theirs, words))
    by_merging = make(merged.text, mmproj_path=merged.mmproj, **options)
    by_half = make(text, lora_path=str(file), lora_scale=0.5, **options)
    with_lora, with_merged, with_half = (scores(llama, llama.render(asked)) for llama in (ours, by_merging, by_half))
    effect = np.abs(with_lora - with_half).max()
    assert np.abs(with_lora - with_merged).max() < 1e-3 * effect
