"""Text and pictures through stock llama.cpp with the hook, in F32: every configuration, layout, canvas and split."""

import pytest
from cases import LAYOUTS, canvas_case, make_case
from harness import Decoder
from invariants import F32_BOUND, assert_same_logits_for_any_split, max_error
from tiny_configs import CONFIGS

# (1,) is token by token; (10, 1) prefill, then token by token; a cut may fall between, before or after images
SPLITS = [(1,), (10, 1), (6, 1, 5), (7,), (3, 4, 5, 20)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_layouts(decoders, expected, name, layout):
    case = make_case(name, layout)
    got = decoders(name).logits(case)[:, : CONFIGS[name].vocab_size]
    assert expected(name).logits_error(case, got) <= F32_BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_canvases(decoders, expected, name):
    config = CONFIGS[name]
    for ratio in config.aspect_ratios:
        case = canvas_case(name, ratio)
        got = decoders(name).logits(case)[:, : config.vocab_size]
        assert expected(name).logits_error(case, got) <= F32_BOUND, ratio


@pytest.mark.parametrize("n_ubatch", [1, 5, 512])
@pytest.mark.parametrize("layout", ["three_mixed", "later_turn"])
@pytest.mark.parametrize("name", ["base", "adjacent", "six_tiles"])
def test_ubatches(decoders, expected, name, layout, n_ubatch):
    case = make_case(name, layout)
    got = decoders(name, n_ubatch=n_ubatch).logits(case)[:, : CONFIGS[name].vocab_size]
    assert expected(name).logits_error(case, got) <= F32_BOUND


@pytest.mark.parametrize("n_ubatch", [5, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits(decoders, layout, n_ubatch):
    case = make_case("adjacent", layout)
    want = decoders("adjacent").logits(case)[:, : CONFIGS["adjacent"].vocab_size]
    assert_same_logits_for_any_split(decoders("adjacent", n_ubatch=n_ubatch), case, SPLITS, want)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_change_nothing_of_weight(tiny_pair, mmprojs, expected, n_threads):
    pair = tiny_pair("small")
    mmproj = mmprojs(pair.mmproj, n_threads=n_threads)
    with Decoder(pair.text, mmproj, n_threads=n_threads) as decoder:
        for layout in ("three_mixed", "later_turn"):
            case = make_case("small", layout)
            got = decoder.logits(case, (12, 1, 30))[:, : CONFIGS["small"].vocab_size]
            assert expected("small").logits_error(case, got) <= F32_BOUND


def test_a_picture_matters(decoders):
    """Another picture at the same place changes the rows from the image on, and none before."""
    decoder, case = decoders("small"), make_case("small", "text_image_text")
    other = make_case("small", "text_image_text", (7, "e", 20))
    assert case.token_ids == other.token_ids
    a, b = decoder.logits(case), decoder.logits(other)
    assert (a[:7] == b[:7]).all()
    assert all(max_error(x, y) > 0.01 for x, y in zip(a[7:], b[7:], strict=True))
