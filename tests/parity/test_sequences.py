"""Several sequences in one batch."""

import pytest
from cases import make_case
from harness import Decoder
from invariants import F32_BOUND, assert_batch_equals_singles
from tiny_configs import CONFIGS


@pytest.mark.parametrize("how", ["blocks", "alternating", "ragged"])
@pytest.mark.parametrize("n_ubatch", [1, 7, 16, 512])
@pytest.mark.parametrize("layouts", [("text_image_text", "two_images"), ("text_only", "three_mixed", "image_first")])
def test_each_sequence_as_if_alone(decoders, layouts, n_ubatch, how):
    cases = [make_case("base", layout) for layout in layouts]
    n_vocab = CONFIGS["base"].vocab_size
    singles = [decoders("base").logits(case)[:, :n_vocab] for case in cases]
    batched = decoders("base", n_ubatch=n_ubatch, n_seq_max=len(cases))
    assert_batch_equals_singles(batched, cases, singles, how)


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize(
    "layouts", [((3, "b", 150), ("c", 5)), (("c", 126), (3, "b", 127), ("d", 1), ("e", 24))], ids=str
)
def test_many_rows_beside_few(tiny_pair, mmprojs, layouts, kv_type):
    """On the CPU who computes a sequence's cross attention depends on how many of its rows are there: 128 or more."""
    pair, n_vocab = tiny_pair("base"), CONFIGS["base"].vocab_size
    cases = [make_case("base", "beside", layout) for layout in layouts]
    with Decoder(pair.text, mmprojs(pair.mmproj, cross_kv_type=kv_type), n_ctx=512, n_seq_max=len(cases)) as decoder:
        singles = [decoder.logits(case, (1,))[:, :n_vocab] for case in cases]
        assert_batch_equals_singles(decoder, cases, singles, "blocks", {"f32": F32_BOUND, "f16": 5e-3}[kv_type])
