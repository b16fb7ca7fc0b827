"""Without a picture in sight the package is stock llama.cpp, bit for bit."""

import numpy as np
import pytest
from cases import make_case
from harness import Decoder

from pyvllama._runtime import llama_cpp


@pytest.mark.parametrize("repack", [True, False], ids=["repacked", "mapped"])
@pytest.mark.parametrize("n_ubatch", [7, 512])
@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("text_type", ["f32", "bf16", "q8_0", "q4_k_m"])
def test_bit_identical_to_stock(tiny_pair, mmprojs, text_type, n_ubatch, flash, repack):
    pair = tiny_pair("base", text_type)
    case = make_case("base", "text_only")
    options = {"n_ubatch": n_ubatch, "flash": flash, "kv_type": 1, "repack": repack}
    with Decoder(pair.text, **options) as stock, Decoder(pair.text, mmprojs(pair.mmproj), **options) as ours:
        for pieces in (None, (10, 1)):
            np.testing.assert_array_equal(ours.logits(case, pieces), stock.logits(case, pieces))


@pytest.mark.parametrize("pieces", [None, (1,), (5,)], ids=["whole", "token by token", "fives"])
def test_rows_before_the_first_image_are_stock_too(tiny_pair, mmprojs, pieces):
    pair = tiny_pair("adjacent")
    case = make_case("adjacent", "text_image_text")
    first = case.token_ids.index(case.image_token)
    with Decoder(pair.text) as stock, Decoder(pair.text, mmprojs(pair.mmproj)) as ours:
        got, want = ours.logits(case, pieces), stock.logits(case, pieces)
    np.testing.assert_array_equal(got[:first], want[:first])
    assert (got[first:] != want[first:]).any(axis=1).all()


def test_text_file_loads_in_stock_llama_cpp(pocket_pairs):
    """The high-level class of llama-cpp-python, and an answer out of it."""
    llm = llama_cpp.Llama(str(pocket_pairs("q8_0", "q8_0").text), n_ctx=256, verbose=False, n_threads=1)
    try:
        reply = llm.create_chat_completion([{"role": "user", "content": "Hello!"}], max_tokens=8, temperature=0)
        assert reply["choices"][0]["message"]["content"].strip()
    finally:
        llm.close()
