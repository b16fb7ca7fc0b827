"""pyvllama.types: options in range or refused by name, and what a completion cost."""

import math
from dataclasses import fields

import pytest

from pyvllama.errors import ConfigError
from pyvllama.types import SamplingParams, Timings, Usage

# option -> (values at the border that are taken, values that are not)
RANGES = {
    "max_tokens": ([1, 2**31 - 1, None], [0, -1, 2**31, 2.0, "5", True]),
    "temperature": ([0, 0.0, 1, 100.0], [-0.1, 100.1, math.nan, math.inf, "warm", None, True]),
    "top_p": ([0, 0.5, 1], [-0.01, 1.01, math.nan]),
    "top_k": ([0, 40], [-1, 2**31, 4.5]),
    "min_p": ([0, 1.0], [-1, 2]),
    "repeat_penalty": ([0.01, 1, 100], [0, -3, 101]),
    "presence_penalty": ([-100, 0, 100], [-101, 101]),
    "frequency_penalty": ([-100, 0, 100], [-101, 101]),
    "penalty_last_n": ([-1, 0, 64], [-2, 1.5]),
    "seed": ([0, 2**32 - 2, None], [-1, 2**32 - 1, 2**32, 1.0]),
    "top_logprobs": ([0, 100, None], [-1, 101, 1.5, True]),
    "logit_bias": ([(), ((5, -100.0), (7, 3))], [((5, "x"),), ((5, math.nan),), (("a", 1),), ((5, True),)]),
    "stop": ([(), ("a",), ("a", "b c")], [("",), (5,), "a", ["a"], None]),
}


def test_every_option_is_in_the_table():
    assert set(RANGES) == {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (good, _) in RANGES.items() for v in good])
def test_values_in_range(name, value):
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (_, bad) in RANGES.items() for v in bad])
def test_values_out_of_range_are_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        SamplingParams(**{name: value})
    assert repr(value if name != "logit_bias" else value[0][1]) in str(caught.value)


def test_llama_cpps_random_seed_is_out_of_range():
    """LLAMA_DEFAULT_SEED means another seed each time: taken as a number it would break "same seed, same answer"."""
    from pyvllama._runtime import llama_cpp

    with pytest.raises(ConfigError, match="seed"):
        SamplingParams(seed=llama_cpp.LLAMA_DEFAULT_SEED)


DEFAULTS = SamplingParams(temperature=0.3, top_k=7, stop=("END",), max_tokens=9)


def test_options_go_over_defaults():
    got = SamplingParams.from_options(DEFAULTS, {"top_k": 3, "temperature": 0.0})
    assert got == SamplingParams(temperature=0.0, top_k=3, stop=("END",), max_tokens=9)


def test_options_that_are_none_count_as_not_given():
    assert SamplingParams.from_options(DEFAULTS, dict.fromkeys(RANGES)) == DEFAULTS


@pytest.mark.parametrize(
    ("stop", "expected"), [("\n", ("\n",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ([], ()), ("ab", ("ab",))]
)
def test_stop_may_be_a_string_or_a_sequence(stop, expected):
    assert SamplingParams.from_options(DEFAULTS, {"stop": stop}).stop == expected


@pytest.mark.parametrize("stop", ["", [""], ["a", None], 5, {"a": 1}])
def test_other_stops_are_refused(stop):
    with pytest.raises(ConfigError, match="stop"):
        SamplingParams.from_options(DEFAULTS, {"stop": stop})


def test_unknown_options_are_refused_all_at_once_and_the_known_ones_listed():
    with pytest.raises(ConfigError, match=r"unknown options: mirostat, temprature; known are .*temperature"):
        SamplingParams.from_options(DEFAULTS, {"temprature": 1, "mirostat": 2, "top_k": 1})


def test_values_are_frozen():
    with pytest.raises(AttributeError):
        DEFAULTS.top_k = 1


def test_usage_adds_up():
    expected = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert Usage(prompt_tokens=3, completion_tokens=4).as_dict() == expected


def test_rates_are_tokens_per_second():
    d = Timings(prompt_n=30, prompt_ms=1500.0, predicted_n=5, predicted_ms=250.0).as_dict()
    assert (d["prompt_per_second"], d["predicted_per_second"]) == (20.0, 20.0)


def test_no_time_is_no_rate():
    d = Timings(prompt_n=30).as_dict()
    assert (d["prompt_per_second"], d["predicted_per_second"]) == (0.0, 0.0)


def test_logit_bias_as_openai_has_it():
    assert SamplingParams.from_options(DEFAULTS, {"logit_bias": {"50": -100, 7: 2.5}}).logit_bias == (
        (50, -100),
        (7, 2.5),
    )


@pytest.mark.parametrize("given", [[1, 2], "50", {"red": 1}, {None: 1}, {"5": "much"}])
def test_logit_bias_that_is_none(given):
    with pytest.raises(ConfigError, match="logit_bias must"):
        SamplingParams.from_options(DEFAULTS, {"logit_bias": given})
