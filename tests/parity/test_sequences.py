"""Several sequences in one batch."""

import pytest
from cases import make_case
from invariants import assert_batch_equals_singles
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
