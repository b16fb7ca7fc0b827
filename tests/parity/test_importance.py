"""What the importance collector counts, against the inputs of transformers' linear layers, and against llama-imatrix.

The oracle computes rows that ours leaves out: padding of tiles, and text rows that see no image in cross-attention
layers. They are left out here by the tests' own rules.
"""

import ctypes
import re
from collections import defaultdict

import numpy as np
import pytest
from cases import images_seen, make_case
from harness import Decoder
from tiny_configs import CONFIGS

from pyvllama._runtime import llama_cpp, native
from pyvllama.errors import BackendError, Cancelled

BOUND = 3e-5  # relative, of each column's sum; float32 products on both sides, measured: below 1e-5


def collect(decoder, mmproj, case, pieces=None):
    """name -> (sums, rows) of a prompt and its pictures, each encoded once."""
    collector = native.ImportanceCollector()
    mmproj.set_collector(collector)
    decoder.hook.set_collector(collector)
    try:
        decoder.logits(case, pieces)
    finally:
        mmproj.set_collector(None)
        decoder.hook.set_collector(None)
    return collector.entries


def assert_same(got, want):
    assert set(got) == set(want)
    for name, (sums, n_rows) in want.items():
        assert got[name][1] == n_rows, name
        np.testing.assert_allclose(got[name][0], sums, rtol=BOUND, atol=BOUND * sums.mean(), err_msg=name)


# --- transformers ---

SELF = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output"}  # fmt: skip
CROSS = {name.replace("self_attn", "cross_attn"): ours for name, ours in SELF.items()}
MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TOWER = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}  # fmt: skip


def our_name(module, cross_layers):
    """(name in our files, kind of its rows) of a linear layer of transformers', or None."""
    if module.endswith("multi_modal_projector"):
        return "mm.0.weight", "projector"
    if match := re.search(r"vision_model\.(transformer|global_transformer)\.layers\.(\d+)\.(.*)", module):
        prefix = "v.global.blk" if match[1] == "global_transformer" else "v.blk"
        return f"{prefix}.{match[2]}.{TOWER[match[3]]}.weight", "tower"
    if not (match := re.search(r"language_model\.layers\.(\d+)\.(.*)", module)):
        return None
    i, part = int(match[1]), match[2]
    if i in cross_layers:
        kind = "states" if part in ("cross_attn.k_proj", "cross_attn.v_proj") else "seeing"
        return f"xattn.blk.{i}.{(CROSS | MLP)[part]}.weight", kind
    return f"blk.{i - sum(c < i for c in cross_layers)}.{(SELF | MLP)[part]}.weight", "text"


def expected(oracle, case, config):
    """name -> (sums, rows), from forward hooks."""
    import torch

    n_tiles = [len(tiles) for tiles, _ in case.images]
    seeing = [bool(seen) for seen in images_seen(case.token_ids, case.image_token)]
    max_tiles, n_pos = config.max_num_tiles, config.n_positions
    sums, counts = {}, defaultdict(int)

    def real(x, n_rows_of_tile):
        x = x.reshape(len(n_tiles), max_tiles, n_rows_of_tile, -1)
        return np.concatenate([x[k, :n, :n_pos].reshape(-1, x.shape[-1]) for k, n in enumerate(n_tiles)])

    def rows_of(kind, x):
        if kind == "text":
            return x.reshape(-1, x.shape[-1])
        if kind == "seeing":
            return x.reshape(-1, x.shape[-1])[seeing]
        return real(x, n_pos if kind != "tower" else -(-n_pos // 8) * 8)

    def hook(name, kind):
        def add(_module, inputs):
            rows = rows_of(kind, inputs[0].detach().numpy().astype(np.float64))
            sums[name] = sums.get(name, 0) + (rows**2).sum(axis=0)
            counts[name] += len(rows)

        return add

    handles = []
    for module_name, module in oracle.model.named_modules():
        if isinstance(module, torch.nn.Linear) and (found := our_name(module_name, oracle.cross_attention_layers)):
            handles.append(module.register_forward_pre_hook(hook(*found)))
    try:
        oracle.logits(case.token_ids, case.images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total, counts[name]) for name, total in sums.items()}


@pytest.mark.reference
@pytest.mark.parametrize("layout", ["text_image_text", "consecutive", "two_images"])
@pytest.mark.parametrize("name", ["small", "adjacent", "odd_rows"])
def test_against_the_inputs_of_linear_layers(tiny_pair, tiny_checkpoint, oracle, decoders, mmprojs, name, layout):
    case = make_case(name, layout)
    want = expected(oracle(tiny_checkpoint(name)), case, CONFIGS[name])
    assert any(k.startswith("v.global") for k in want) and any(k.startswith("xattn") for k in want)
    mmproj = mmprojs(tiny_pair(name).mmproj)
    assert_same(collect(decoders(name), mmproj, case), want)


@pytest.mark.reference
def test_padding_does_not_count_in_either_form(tiny_pair, tiny_checkpoint, oracle, mmprojs):
    """Whether padded tiles are computed one by one or one for all."""
    case = make_case("small", "text_image_text")
    want = expected(oracle(tiny_checkpoint("small")), case, CONFIGS["small"])
    for options in ({}, {"merge_padding": False}, {"repack": False}):
        mmproj = mmprojs(tiny_pair("small").mmproj, **options)
        with Decoder(tiny_pair("small").text, mmproj) as decoder:
            assert_same(collect(decoder, mmproj, case), want)


# --- llama-imatrix ---


class Tensor(ctypes.Structure):
    """ggml_tensor of the pinned llama.cpp (ggml.h), as far as is read here."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


class LlamaImatrix:
    """tools/imatrix/imatrix.cpp, collect_imatrix, in Python: the same nodes, float32 sums."""

    def __init__(self):
        self.entries = {}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._called)

    def _called(self, address, ask, _user_data):
        node = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        if not node.src[0] or not node.src[1]:
            return not ask
        weight, x = node.src[0].contents, node.src[1].contents
        # only a matrix product has one of these as its first operand
        wanted = weight.name.startswith(b"blk.") and weight.name.endswith(b".weight") and x.type == 0 and x.ne[1] >= 16
        if ask or not wanted:
            return wanted or not ask
        assert x.ne[2] * x.ne[3] == 1 and x.nb[1] == 4 * x.ne[0]
        rows = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (x.ne[1], x.ne[0]))
        sums, n = self.entries.get(weight.name.decode(), (np.zeros(x.ne[0], np.float32), 0))
        for row in rows:
            sums = sums + row * row
        self.entries[weight.name.decode()] = (sums, n + len(rows))
        return True


@pytest.mark.parametrize("n_ubatch", [512, 16])
def test_text_alone_is_what_llama_imatrix_collects(tiny_pair, mmprojs, n_ubatch):
    """On stock llama.cpp, without our hook; batches are a multiple of 16, for smaller ones it leaves out."""
    pair, case = tiny_pair("base"), make_case("base", "long_text", (64,))
    theirs = LlamaImatrix()
    with Decoder(pair.text, n_ubatch=n_ubatch, cb_eval=theirs.callback) as stock:
        want_logits = stock.logits(case)
    mmproj = mmprojs(pair.mmproj)
    with Decoder(pair.text, mmproj, n_ubatch=n_ubatch) as decoder:
        got = collect(decoder, mmproj, case)
        np.testing.assert_array_equal(decoder.logits(case), want_logits)
    assert len(got) == 7 * 5 and set(got) == set(theirs.entries)
    for name, (sums, n_rows) in theirs.entries.items():
        assert got[name][1] == n_rows == 64
        np.testing.assert_allclose(got[name][0], sums, rtol=1e-5, err_msg=name)


# --- no change ---


def test_collecting_changes_no_number(tiny_pair, decoders, mmprojs):
    case, mmproj = make_case("small", "two_images"), mmprojs(tiny_pair("small").mmproj)
    decoder = decoders("small")
    plain = decoder.logits(case)
    collector = native.ImportanceCollector()
    mmproj.set_collector(collector)
    decoder.hook.set_collector(collector)
    np.testing.assert_array_equal(decoder.logits(case), plain)
    counted = {name: n for name, (_, n) in collector.entries.items()}
    mmproj.set_collector(None)
    decoder.hook.set_collector(None)
    np.testing.assert_array_equal(decoder.logits(case), plain)
    assert {name: n for name, (_, n) in collector.entries.items()} == counted


def test_encoding_can_be_stopped_while_collecting(tiny_pair, mmprojs):
    mmproj, image = mmprojs(tiny_pair("base").mmproj), make_case("base", "image_first").images[0]
    want = mmproj.encode(*image, want_states=True)[1]
    mmproj.set_collector(native.ImportanceCollector())
    with pytest.raises(Cancelled):
        mmproj.encode(*image, progress=lambda fraction: False)
    with pytest.raises(BackendError, match="progress callback"):
        mmproj.encode(*image, progress=lambda fraction: mmproj.set_collector(None))
    mmproj.set_collector(None)
    np.testing.assert_array_equal(mmproj.encode(*image, want_states=True)[1], want)


def test_any_split_counts_the_same(tiny_pair, decoders, mmprojs):
    case, mmproj = make_case("small", "text_image_text"), mmprojs(tiny_pair("small").mmproj)
    whole = collect(decoders("small"), mmproj, case)
    for pieces in ([1], [5, 3, 7]):
        assert_same(collect(decoders("small"), mmproj, case, pieces), whole)


def test_the_output_matrix_on_demand(tiny_pair, decoders):
    case, decoder = make_case("small", "text_only"), decoders("small")
    for process_output in (False, True):
        collector = native.ImportanceCollector(process_output=process_output)
        decoder.hook.set_collector(collector)
        decoder.logits(case)
        decoder.hook.set_collector(None)
        assert ("output.weight" in collector.entries) is process_output
        assert "token_embd.weight" not in collector.entries
