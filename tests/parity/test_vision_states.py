"""The vision tower and projector in F32, every canvas of every configuration."""

import factories
import numpy as np
import pytest
from cases import canvas_case, make_case
from invariants import F32_BOUND, max_error
from tiny_configs import CONFIGS

CANVASES = [(name, ratio) for name, config in CONFIGS.items() for ratio in config.aspect_ratios]


@pytest.mark.parametrize(("name", "ratio"), CANVASES, ids=lambda v: v if isinstance(v, str) else f"{v[0]}x{v[1]}")
def test_states_of_every_canvas(tiny_pair, mmprojs, expected, name, ratio):
    config, case = CONFIGS[name], canvas_case(name, ratio)
    _, states, _ = mmprojs(tiny_pair(name).mmproj).encode(*case.images[0], want_states=True)
    assert states.shape == (ratio[0] * ratio[1], config.n_positions, config.hidden_size)
    assert expected(name).states_error(case, states) <= F32_BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_one_padded_tile_for_all_is_exact(tiny_pair, mmprojs, name):
    """The padded tiles of a canvas are alike; computing one of them with a weight gives what computing all gives."""
    path = tiny_pair(name).mmproj
    for ratio in CONFIGS[name].aspect_ratios[:4]:
        image = canvas_case(name, ratio).images[0]
        _, merged, _ = mmprojs(path).encode(*image, want_states=True)
        _, plain, _ = mmprojs(path, merge_padding=False).encode(*image, want_states=True)
        assert max_error(merged, plain) <= F32_BOUND, ratio


TABLES = {
    "tile_position": "vision_model.gated_positional_embedding.tile_embedding.weight",
    "pre_tile": "vision_model.pre_tile_positional_embedding.embedding.weight",
    "post_tile": "vision_model.post_tile_positional_embedding.embedding.weight",
}


@pytest.mark.reference
@pytest.mark.parametrize("table", TABLES)
def test_padded_tiles_that_differ_are_not_taken_for_one(tmp_path, oracle, converted, mmprojs, table):
    """A fine-tune may have trained the embeddings of padded tiles; then each of them must be computed."""

    def edit(name, values):
        if name != TABLES[table]:
            return values
        noise = factories.random_state(name).standard_normal(values.shape).astype(np.float32)
        return np.where(values == 0, noise, values)

    checkpoint = factories.write_checkpoint(tmp_path / f"padded-{table}" / "tiny", "small", edit=edit)
    mmproj = mmprojs(converted(checkpoint).mmproj)
    for ratio in ((1, 1), (2, 1), (2, 2)):
        image = canvas_case("small", ratio).images[0]
        _, states, _ = mmproj.encode(*image, want_states=True)
        assert max_error(states, oracle(checkpoint).vision_states(image)) <= F32_BOUND, ratio


def test_encoding_is_the_same_every_time(tiny_pair, mmprojs):
    mmproj = mmprojs(tiny_pair("small").mmproj)
    images = make_case("small", "three_mixed").images
    first = [mmproj.encode(*image, want_states=True)[1] for image in images]
    again = [mmproj.encode(*image, want_states=True)[1] for image in reversed(images)]
    for a, b in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tiles_are_bound_to_their_place(tiny_pair, mmprojs):
    """Two tiles exchanged are another picture; the same tiles on another canvas are another one too."""
    mmproj = mmprojs(tiny_pair("small").mmproj)
    config = CONFIGS["small"]
    pixels, wide = canvas_case("small", (1, 2)).images[0]
    tall = config.aspect_ratios.index((2, 1)) + 1
    want = mmproj.encode(pixels, wide, want_states=True)[1]
    swapped = mmproj.encode(np.ascontiguousarray(pixels[::-1]), wide, want_states=True)[1]
    assert max_error(swapped[::-1], want) > 0.01
    assert max_error(mmproj.encode(pixels, tall, want_states=True)[1], want) > 0.01
