"""Values that travel: a model's files, options of a generation, what it cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from pyvllama.errors import ConfigError

__all__ = ["DEFAULT_MMPROJ_TYPE", "DEFAULT_TEXT_TYPE", "FinishReason", "Pair", "SamplingParams", "Timings", "Usage"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two files of a model: the text GGUF, which stock llama.cpp loads too, and the mmproj."""

    text: Path
    mmproj: Path


DEFAULT_TEXT_TYPE, DEFAULT_MMPROJ_TYPE = "q4_k_m", "q8_0"
"""What a checkpoint is converted to unless somebody says otherwise."""

FinishReason = str  # "stop": an end token or a stop string; "length": max_tokens or the context is full; "tool_calls"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. OpenAI's words where it has them, llama.cpp's for the rest.

    Attributes:
        max_tokens: tokens to generate at most; None: until the context is full.
        temperature: 0 is greedy: always the likeliest token.
        top_p: nucleus; 1 is off.
        top_k: likeliest tokens to choose from; 0 is off.
        min_p: least probability, relative to the likeliest token's; 0 is off.
        repeat_penalty: divides the logits of recent tokens; 1 is off.
        presence_penalty, frequency_penalty: subtracted from the logits of recent tokens, once or per occurrence.
        penalty_last_n: how many tokens are recent; -1: all of the context.
        seed: same seed, same answer; None: another one each time.
        stop: the answer ends before the first of these strings.
        logit_bias: (token, what is added to its logit), for as many tokens as you like.
        top_logprobs: with each token, its log-probability and those of so many of the likeliest; None: neither.
    """

    max_tokens: int | None = None
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the option, its value and its range.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            is_whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
                raise ConfigError(f"{name} must be a {'whole ' if is_whole else ''}number, not {value!r}")
            if not low <= value <= high:
                raise ConfigError(f"{name} must be between {low} and {high}, not {value!r}")
        if not isinstance(self.stop, tuple) or any(not isinstance(s, str) or not s for s in self.stop):
            raise ConfigError(f"stop must be strings of at least one character, not {self.stop!r}")
        for token, bias in self.logit_bias:
            if (
                type(token) is not int
                or isinstance(bias, bool)
                or not isinstance(bias, int | float)
                or math.isnan(bias)
            ):
                raise ConfigError(f"logit_bias must map token ids to numbers, not {token!r} to {bias!r}")

    @classmethod
    def from_options(cls, defaults: "SamplingParams", options: dict[str, Any]) -> "SamplingParams":
        """The defaults with the given options put over them; options that are None count as not given.

        Raises:
            ConfigError: an option of another name, or out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ConfigError(f"unknown options: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        given = {k: v for k, v in options.items() if v is not None}
        stop = given.get("stop")
        if isinstance(stop, str):
            given["stop"] = (stop,)
        elif isinstance(stop, Sequence):
            given["stop"] = tuple(stop)
        if "logit_bias" in given:
            given["logit_bias"] = _biases(given["logit_bias"])
        return cls(**{**asdict(defaults), **given})


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's object: its keys are token ids, as strings in JSON."""
    if not isinstance(given, Mapping):
        return tuple(given) if isinstance(given, tuple) else _refuse_biases(given)
    try:
        return tuple((int(token), bias) for token, bias in given.items())
    except (TypeError, ValueError):
        return _refuse_biases(given)


def _refuse_biases(given: Any) -> NoReturn:
    raise ConfigError(f"logit_bias must be an object that maps token ids to numbers, not {given!r:.80}")


_RANGES: dict[str, tuple[float, float]] = {  # int bounds: whole numbers only
    "max_tokens": (1, 2**31 - 1),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "penalty_last_n": (-1, 2**31 - 1),
    "top_logprobs": (0, 100),
    "seed": (0, 2**32 - 2),  # 2**32 - 1 is llama.cpp's word for "another one each time"
}
_MAY_BE_NONE = ("max_tokens", "seed", "top_logprobs")


@dataclass(slots=True)
class Usage:
    """Tokens of a completion, as OpenAI counts them; an image is one prompt token."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        """OpenAI's `usage` object."""
        return {**asdict(self), "total_tokens": self.prompt_tokens + self.completion_tokens}


@dataclass(slots=True)
class Timings:
    """Where the time of a completion went, in milliseconds. What a user feels as speed includes the picture.

    Attributes:
        image_encode_ms: encoding of the images that were not cached; 0 without images.
        image_cached: images taken from the cache.
        prompt_n: prompt tokens decoded, without those that the KV cache held already.
        predicted_n: tokens generated.
        draft_n, draft_n_accepted: tokens that a draft guessed, and those of them that the model would have said itself
            (llama-server's names); None without a draft.
    """

    image_encode_ms: float = 0.0
    image_cached: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    draft_n: int | None = None
    draft_n_accepted: int | None = None

    def as_dict(self) -> dict[str, float]:
        """The fields that are not None, and two rates: `prompt_per_second` and `predicted_per_second`."""
        rate = {
            "prompt_per_second": _per_second(self.prompt_n, self.prompt_ms),
            "predicted_per_second": _per_second(self.predicted_n, self.predicted_ms),
        }
        return {**{name: value for name, value in asdict(self).items() if value is not None}, **rate}


def _per_second(n: int, ms: float) -> float:
    return 1000.0 * n / ms if ms > 0 else 0.0
