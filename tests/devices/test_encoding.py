"""The vision tower and the keys and values of pictures on devices that are no CPU."""

import numpy as np
import pytest
from cases import canvas_case, make_case
from fake_devices import MIB
from invariants import F32_BOUND, max_error
from tiny_configs import CONFIGS

from pyvllama._runtime import native
from pyvllama.errors import BackendError

# On a device the padded tile's log(n), n <= 3, comes in a mask, which ggml takes in F16 only: it is rounded by up to
# 2^-11, and the tile's weight in the attention with it.
MASK_BOUND = 5e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_those_of_the_cpu(tiny_pair, mmproj, name):
    path = tiny_pair(name).mmproj
    for ratio in CONFIGS[name].aspect_ratios:
        image = canvas_case(name, ratio).images[0]
        want = mmproj(path).encode(*image, want_states=True)[1]
        plain = mmproj(path, "FAKE0", merge_padding=False).encode(*image, want_states=True)[1]
        merged = mmproj(path, "FAKE0").encode(*image, want_states=True)[1]
        assert max_error(plain, want) <= F32_BOUND, ratio
        assert max_error(merged, want) <= MASK_BOUND, ratio


def test_the_tower_computes_where_it_is(tiny_pair, mmproj, devices):
    model = mmproj(tiny_pair("base").mmproj, "FAKE1", ("cpu",) * 5)
    before = devices.stats(0).n_nodes, devices.stats(1).n_nodes
    model.encode(*make_case("base", "image_first").images[0])
    assert devices.stats(0).n_nodes == before[0]
    assert devices.stats(1).n_nodes > before[1]
    assert (model.device, model.cross_devices) == ("FAKE1", ["CPU"] * 3)


PLACES = [("cpu",) * 5, ("FAKE0",) * 5, ("cpu", "cpu", "FAKE0", "FAKE0", "FAKE1"), ("FAKE1", "FAKE0", "cpu")]


@pytest.mark.parametrize("layers", PLACES, ids=" ".join)
@pytest.mark.parametrize("tower", ["cpu", "FAKE0", "FAKE1"])
def test_keys_and_values_are_where_their_layers_are(tiny_pair, mmproj, devices, tower, layers):
    path, image = tiny_pair("base").mmproj, make_case("base", "image_first").images[0]
    model = mmproj(path, tower, layers, merge_padding=False)
    want = mmproj(path, merge_padding=False).encode(*image)[0]
    before = [devices.stats(i).n_used for i in (0, 1)]
    got = model.encode(*image)[0]
    held = [devices.stats(i).n_used - n for i, n in enumerate(before)]
    # cross-attention layers 1, 3, 6 of 8 come after text layers 0, 1 and 3
    expected = [(*layers, *[tower] * 5)[i].upper() for i in (0, 1, 3)]
    assert model.cross_devices == expected
    for i, n in enumerate(held):
        share = got.n_bytes * expected.count(f"FAKE{i}") / 3
        assert share <= n <= share + 4096
    for j in range(3):
        assert max_error(got.keys(j), want.keys(j)) <= F32_BOUND
        assert max_error(got.values(j), want.values(j)) <= F32_BOUND
    del got
    assert [devices.stats(i).n_used for i in (0, 1)] == before


def test_kept_parts_come_back_to_their_devices(tiny_pair, mmproj):
    image = make_case("base", "image_first").images[0]
    model = mmproj(tiny_pair("base").mmproj, "FAKE0", ("cpu", "FAKE1", "cpu", "FAKE0"), cross_kv_type="q8_0")
    # what of values cannot be in 8 bits on the CPU can on a device
    assert model.part_types == ["q8_0", "f16", "q8_0", "q8_0", "q8_0", "q8_0"]
    assert model.attention_form == "softmax flash flash"
    first = model.encode(*image)[0]
    again = model.restore(first.n_tokens, [first.part(i) for i in range(first.n_parts)])
    for j in range(3):
        np.testing.assert_array_equal(again.keys(j), first.keys(j))
        np.testing.assert_array_equal(again.values(j), first.values(j))
    with pytest.raises(ValueError, match="part 1 of an image has"):
        model.restore(first.n_tokens, [first.part(0)] * first.n_parts)


def test_progress_reaches_its_end_and_never_goes_back(tiny_pair, mmproj):
    for tower, layers in (("cpu", ("FAKE0", "cpu", "FAKE1")), ("FAKE0", ("cpu", "FAKE0", "FAKE1", "cpu"))):
        seen = []
        model = mmproj(tiny_pair("base").mmproj, tower, layers)
        model.encode(*make_case("base", "image_first").images[0], progress=seen.append)
        assert seen[-1] == 1.0
        assert seen == sorted(seen)


def test_weights_that_do_not_fit(tiny_pair, devices):
    path = str(tiny_pair("base").mmproj)
    with devices.of_size(1, devices.stats(1).n_used + MIB), pytest.raises(BackendError, match="do not fit into FAKE1"):
        native.Mmproj(path, device="cpu", layer_devices=["FAKE1"] * 5)
    assert native.Mmproj(path, device="cpu", layer_devices=["FAKE1"] * 5).device == "CPU"


@pytest.mark.parametrize(
    ("device", "room", "what"),
    [(0, 0, "an image's states"), (0, 3 * MIB // 2, "the vision graph"), (1, 0, "an image's keys and values")],
)
def test_an_image_that_does_not_fit(tiny_pair, mmproj, devices, device, room, what):
    model = mmproj(tiny_pair("base").mmproj, "FAKE0", ("FAKE1",) * 5)
    image = canvas_case("base", (2, 2)).images[0]
    before = [devices.stats(i).n_used for i in (0, 1)]
    with devices.of_size(device, before[device] + room), pytest.raises(BackendError, match=f"FAKE{device} for {what}"):
        model.encode(*image)
    assert [devices.stats(i).n_used for i in (0, 1)] == before  # nothing of it is left
    assert model.encode(*image)[0].n_tokens == 4 * CONFIGS["base"].n_positions


def test_a_device_that_there_is_not(tiny_pair):
    path = str(tiny_pair("base").mmproj)
    for options in ({"device": "FAKE7"}, {"layer_devices": ["cpu", "FAKE7"]}):
        with pytest.raises(ValueError, match="no device 'FAKE7'"):
            native.Mmproj(path, **options)
