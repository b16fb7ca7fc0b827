"""Text GGUFs with a sound container and the wrong things in it, and damaged at random: refused, never a crash.

They are opened in a process of their own: llama.cpp itself asserts on some of them, and what is tested is that pyvllama
looks before it does.
"""

import math

import gguf_bytes as gb
import pytest
from gguf_bytes import Gguf
from verdicts import damage, verdicts

N_DAMAGED = 150
REFUSED = {None, "FormatError", "BackendError", "PromptError"}  # BackendError: llama.cpp itself would not load it


def strings(values: list[str]) -> bytes:
    return gb.array(gb.STRING, [gb.string(value) for value in values])


def token_twice(g: Gguf) -> None:
    # llama.cpp asserts that all tokens differ, which ends the process
    key = g.key("tokenizer.ggml.tokens")
    key.payload = key.payload.replace(b"<|reserved_special_token_1|>", b"<|reserved_special_token_2|>")


EPSILON = "llama.attention.layer_norm_rms_epsilon"
DAMAGE = {
    "another_architecture": lambda g: g.set("general.architecture", gb.STRING, gb.string("qwen2")),
    "no_architecture": lambda g: g.drop_key("general.architecture"),
    "no_block_count": lambda g: g.drop_key("llama.block_count"),
    "block_count_is_a_string": lambda g: g.set("llama.block_count", gb.STRING, gb.string("4")),
    "block_count_of_billions": lambda g: g.set("llama.block_count", gb.U32, gb.scalar(gb.U32, 2**32 - 1)),
    "no_output_norm": lambda g: g.tensors.remove(g.tensor("output_norm.weight")),
    "no_attn_q": lambda g: g.tensors.remove(g.tensor("blk.1.attn_q.weight")),
    "wrong_shape": lambda g: g.tensor("blk.1.ffn_up.weight").dims.reverse(),
    "matrix_of_integers": lambda g: setattr(g.tensor("blk.1.ffn_up.weight"), "kind", 26),
    "no_tokens": lambda g: g.drop_key("tokenizer.ggml.tokens"),
    "tokens_of_another_count": lambda g: g.set("tokenizer.ggml.tokens", gb.ARRAY, strings(["a", "b", "c"])),
    "tokens_are_numbers": lambda g: g.set("tokenizer.ggml.tokens", gb.ARRAY, gb.array(gb.I32, [bytes(4)] * 308)),
    "token_twice": token_twice,
    "no_merges": lambda g: g.drop_key("tokenizer.ggml.merges"),
    "merges_of_one_word": lambda g: g.set("tokenizer.ggml.merges", gb.ARRAY, strings(["ab", "", " "])),
    "token_types_too_few": lambda g: g.set("tokenizer.ggml.token_type", gb.ARRAY, gb.array(gb.I32, [bytes(4)] * 3)),
    "bos_past_the_end": lambda g: g.set("tokenizer.ggml.bos_token_id", gb.U32, gb.scalar(gb.U32, 2**31)),
    "unknown_tokenizer": lambda g: g.set("tokenizer.ggml.model", gb.STRING, gb.string("nonsense")),
    "broken_template": lambda g: g.set("tokenizer.chat_template", gb.STRING, gb.string("{% for x in %}")),
    "template_is_a_number": lambda g: g.set("tokenizer.chat_template", gb.U32, gb.scalar(gb.U32, 7)),
    "epsilon_is_no_number": lambda g: g.set(EPSILON, gb.F32, gb.scalar(gb.F32, math.nan)),
    "epsilon_negative": lambda g: g.set(EPSILON, gb.F32, gb.scalar(gb.F32, -1.0)),
    "unknown_rope_scaling": lambda g: g.set("llama.rope.scaling.type", gb.STRING, gb.string("foo")),
    "rope_base_0": lambda g: g.set("llama.rope.freq_base", gb.F32, gb.scalar(gb.F32, 0.0)),
    "experts": lambda g: g.set("llama.expert_count", gb.U32, gb.scalar(gb.U32, 8)),
    "vocabulary_of_llama_2": lambda g: g.set("tokenizer.ggml.model", gb.STRING, gb.string("llama")),
    "no_vocabulary": lambda g: g.set("tokenizer.ggml.model", gb.STRING, gb.string("no_vocab")),
    "head_count_0": lambda g: g.set("llama.attention.head_count", gb.U32, bytes(4)),
    "rope_dimensions_of_no_head": lambda g: g.set("llama.rope.dimension_count", gb.U32, gb.scalar(gb.U32, 10**6)),
}
HARMLESS = {"no_merges", "merges_of_one_word", "bos_past_the_end"}  # may also load: llama.cpp goes on without


@pytest.fixture(scope="module")
def opened(tiny_pair, module_path):
    pair = tiny_pair("two_tiles")
    paths = [gb.rewrite(pair.text, module_path / f"{name}.gguf", change) for name, change in DAMAGE.items()]
    return verdicts(f"text:{pair.mmproj}", paths)


@pytest.mark.parametrize("name", DAMAGE)
def test_is_refused(opened, name):
    error, message = opened[name]["error"], opened[name]["message"]
    assert error in (REFUSED if name in HARMLESS else REFUSED - {None}), opened[name]
    assert error is None or f"{name}.gguf" in message, message


def test_undamaged_it_answers(tiny_pair, tmp_path):
    pair = tiny_pair("two_tiles")
    copy = gb.rewrite(pair.text, tmp_path / "copy.gguf", lambda _: None)
    assert verdicts(f"text:{pair.mmproj}", [copy])["copy"]["error"] is None


def test_random_damage_ends_no_process(tiny_pair, tmp_path):
    pair = tiny_pair("two_tiles")
    found = verdicts(f"text:{pair.mmproj}", damage(pair.text, tmp_path, N_DAMAGED, seed=3))
    wrong = {name: v for name, v in found.items() if v["error"] not in REFUSED | {"ImageError", "ConfigError"}}
    assert not wrong, wrong
