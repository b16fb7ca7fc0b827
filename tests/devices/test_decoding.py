"""Cross-attention within llama_decode where text layers are on devices that are no CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import LAYOUTS, make_case
from harness import Decoder, Row
from invariants import F32_BOUND, assert_batch_equals_singles, assert_same_logits_for_any_split, max_error
from tiny_configs import CONFIGS

from pyvllama._runtime import native
from pyvllama.errors import BackendError
from pyvllama.placement import place

# Text layers on devices: none, the output alone, some, all on one device, all on two.
SPLITS: dict[str, tuple[int, tuple[int, ...]]] = {
    "none": (0, ()),
    "output": (1, (1, 0)),
    "some": (3, (3, 0)),
    "some of two": (4, (2, 2)),
    "all": (99, (1, 0)),
    "all of two": (99, (3, 1)),
}


def neighbours(name: str, split: str) -> tuple[str, ...]:
    """Where the outputs of the text layers are if llama.cpp places layers like this."""
    n_layers = CONFIGS[name].num_hidden_layers - len(CONFIGS[name].cross_attention_layers)
    n_gpu_layers, shares = SPLITS[split]
    n = min(n_gpu_layers, n_layers + 1)
    places = ["cpu"] * (n_layers + 1 - n)
    for i in range(n):
        places.append("FAKE0" if i / n < shares[0] / sum(shares) else "FAKE1")
    if 0 < n <= n_layers:
        places[n_layers - n] = places[n_layers - n + 1]  # the last sum on the CPU's side
    return tuple(places[:n_layers])


@pytest.fixture(scope="module")
def decoder(tiny_pair: Callable[..., Any], mmproj: Callable[..., Any]) -> Iterator[Callable[..., Decoder]]:
    """decoder(config, split, tower, layers=where their neighbours are, n_ubatch) -> Decoder; the last few are kept."""
    cache: dict[Any, Decoder] = {}

    def get(name: str, split: str, tower: str = "cpu", layers: Any = None, **options: Any) -> Decoder:
        layers = neighbours(name, split) if layers is None else layers
        key = (name, split, tower, layers, *options.items())
        if key not in cache:
            if len(cache) == 6:
                cache.pop(next(iter(cache))).__exit__()
            n_gpu_layers, shares = SPLITS[split]
            cache[key] = Decoder(
                tiny_pair(name).text,
                mmproj(tiny_pair(name).mmproj, tower, layers, merge_padding=False),
                n_gpu_layers=n_gpu_layers,
                tensor_split=shares,
                **options,
            )
        return cache[key]

    yield get
    for made in cache.values():
        made.__exit__()


def copies(decoder: Decoder) -> int:
    return int(decoder.hook.stats["n_copies"])


@pytest.mark.parametrize("tower", ["cpu", "FAKE0", "FAKE1"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["base", "adjacent"])
def test_every_placement(decoder, on_cpu, name, split, tower):
    """Whole prompts, small ubatches, token by token; a tower anywhere."""
    case = make_case(name, "three_mixed")
    want = on_cpu(name).logits(case)
    for n_ubatch, pieces in ((512, None), (512, (7, 1, 1, 9)), (5, None), (512, (1,))):
        got = decoder(name, split, tower, n_ubatch=n_ubatch).logits(case, pieces)
        assert max_error(got, want) <= F32_BOUND, (n_ubatch, pieces)


@pytest.mark.parametrize("cross", ["cpu", "FAKE0", "FAKE1"])
@pytest.mark.parametrize("split", SPLITS)
def test_cross_attention_away_from_its_neighbours(decoder, on_cpu, split, cross):
    """Rows travel to the layer's device and back; where l_out is there already they do not."""
    case = make_case("base", "two_images")
    made = decoder("base", split, layers=(cross,) * 5)
    before = copies(made), made.hook.stats["n_blocks"]
    got = made.logits(case, (1,))
    assert max_error(got, on_cpu("base").logits(case)) <= F32_BOUND
    n_steps = made.hook.stats["n_blocks"] - before[1]
    assert n_steps == 3 * (case.n_tokens - LAYOUTS["two_images"][0])  # three layers, all rows from the picture on
    # cross-attention layers 1, 3, 6 of 8 come after text layers 0, 1 and 3
    n_away = sum(neighbours("base", split)[i] != cross for i in (0, 1, 3))
    assert copies(made) - before[0] == n_steps // 3 * n_away


@pytest.mark.parametrize("split", SPLITS)
def test_beside_its_neighbour_nothing_travels(decoder, split):
    made = decoder("base", split)
    before = copies(made)
    made.logits(make_case("base", "two_images"), (1,))
    assert copies(made) == before


@pytest.mark.parametrize("split", ["none", "some"])
def test_prompts_that_llama_cpp_computes_elsewhere(decoder, on_cpu, split):
    """Of many rows llama.cpp computes CPU layers on a device (op_offload): l_out is where it is not for single rows."""
    case, made = make_case("base", "text_image_text"), decoder("base", split)
    before = copies(made)
    assert max_error(made.logits(case), on_cpu("base").logits(case)) <= F32_BOUND
    assert copies(made) > before


@pytest.mark.parametrize("split", SPLITS)
def test_text_alone_is_stock_to_the_bit(tiny_pair, decoder, devices, split):
    """Nor are rows before the first picture any different."""
    case, n_before = make_case("base", "text_image_text"), LAYOUTS["text_image_text"][0]
    n_gpu_layers, shares = SPLITS[split]
    made = decoder("base", split)
    with Decoder(tiny_pair("base").text, n_gpu_layers=n_gpu_layers, tensor_split=shares) as stock:
        rows = [Row(token, i) for i, token in enumerate(case.token_ids[:n_before])]
        for pieces in ((n_before,), (1,) * n_before):
            made.clear()
            stock.clear()
            done = 0
            for n in pieces:
                part = rows[done : done + n]
                np.testing.assert_array_equal(made.decode(part), stock.decode(part))
                done += n
        seen = made.logits(case, (n_before, 1, 50))[:n_before]
        stock.clear()
        np.testing.assert_array_equal(seen, stock.decode(rows))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", ["consecutive", "three_consecutive", "later_turn"])
def test_any_split_of_a_prompt(decoder, on_cpu, split, layout):
    case = make_case("adjacent", layout)
    pieces = [(1, 2, 3, 1, 9), (12, 1, 30)]
    assert_same_logits_for_any_split(decoder("adjacent", split), case, pieces, on_cpu("adjacent").logits(case))


@pytest.mark.parametrize("split", ["some", "all of two"])
@pytest.mark.parametrize("how", ["alternating", "ragged"])
def test_several_sequences(decoder, on_cpu, split, how):
    cases = [make_case("base", layout) for layout in ("two_images", "text_only", "later_turn")]
    singles = [on_cpu("base").logits(case) for case in cases]
    for n_ubatch in (512, 7):
        made = decoder("base", split, n_ubatch=n_ubatch, n_seq_max=3)
        assert_batch_equals_singles(made, cases, singles, how)


@pytest.mark.parametrize("split", ["some of two", "all"])
def test_importance_is_that_of_the_cpu(decoder, on_cpu, split):
    """What an imatrix counts: the inputs of all matrices, wherever they are."""
    found = []
    for made in (on_cpu("base"), decoder("base", split)):
        collector = native.ImportanceCollector()
        made.hook.set_collector(collector)
        made.logits(make_case("base", "two_images"))
        made.hook.set_collector(None)
        found.append(collector.entries)
    want, got = found
    assert got.keys() == want.keys()
    assert any(key.startswith("xattn.") for key in want)
    for key, (sums, n_rows) in want.items():
        assert got[key][1] == n_rows
        np.testing.assert_allclose(got[key][0], sums, rtol=1e-4, atol=1e-6 * sums.max())


def test_no_memory_for_a_block(tiny_pair, mmproj, devices, on_cpu):
    """The batch fails by name, and the next one works again."""
    case = make_case("base", "text_image_text")
    model = mmproj(tiny_pair("base").mmproj, "cpu", ("FAKE1",) * 5)
    with Decoder(tiny_pair("base").text, model) as made:
        images = [made.encode(image) for image in case.images]
        full = devices.of_size(1, devices.stats(1).n_used)
        with full, pytest.raises(BackendError, match="no memory on FAKE1 for a cross-attention block"):
            made.logits(case, images=images)
        assert max_error(made.logits(case, images=images), on_cpu("base").logits(case)) <= F32_BOUND


@pytest.mark.parametrize("tower", [True, False])
@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2, 3, 4, 5, 6, 7, -1])
def test_llama_cpp_places_layers_as_we_think(tiny_pair, mmproj, on_cpu, n_gpu_layers, tower):
    """`place` knows where llama.cpp puts each layer: else rows would travel."""
    where = place(5, n_gpu_layers, mmproj_offload=tower, n_tower_bytes=1 << 29)
    case = make_case("base", "image_first")
    model = mmproj(tiny_pair("base").mmproj, where.tower, where.layers)
    n = 99 if n_gpu_layers < 0 else n_gpu_layers
    with Decoder(tiny_pair("base").text, model, n_gpu_layers=n, tensor_split=where.shares) as made:
        made.logits(case, (1,))
        assert made.hook.stats["n_blocks"] == 3 * case.n_tokens
        assert made.hook.stats["n_copies"] == 0
