"""Ollama's `options` and `format` in our words."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyvllama.server.ollama.schema import Format, Inference, Options

__all__ = ["sampling_options"]

_N_SEEDS = 2**32 - 1  # ours are 0 to 2**32 - 2
_MAX_INT = 2**31 - 1


class _Rule(NamedTuple):
    ours: str
    """The name in SamplingParams."""
    convert: Callable[[Any], Any]
    """To a value that it takes; None for "not given"."""


def _between(low: float, high: float) -> Callable[[Any], Any]:
    return lambda value: min(max(value, low), high)


def _max_tokens(n: int) -> int | None:
    return None if n <= 0 else min(n, _MAX_INT)


def _seed(n: int) -> int | None:
    return None if n < 0 else n % _N_SEEDS


def _repeat_penalty(value: float) -> float:
    return 1.0 if value <= 0 else min(max(value, 0.01), 100.0)


_RULES: dict[str, _Rule] = {  # Ollama's option -> ours; what is out of range moves to its edge
    "num_predict": _Rule("max_tokens", _max_tokens),
    "temperature": _Rule("temperature", _between(0.0, 100.0)),
    "top_k": _Rule("top_k", _between(0, _MAX_INT)),
    "top_p": _Rule("top_p", _between(0.0, 1.0)),
    "min_p": _Rule("min_p", _between(0.0, 1.0)),
    "repeat_penalty": _Rule("repeat_penalty", _repeat_penalty),
    "repeat_last_n": _Rule("penalty_last_n", _between(-1, _MAX_INT)),
    "presence_penalty": _Rule("presence_penalty", _between(-100.0, 100.0)),
    "frequency_penalty": _Rule("frequency_penalty", _between(-100.0, 100.0)),
    "seed": _Rule("seed", _seed),
    "stop": _Rule("stop", lambda texts: tuple(text for text in texts if text)),
}


def sampling_options(request: Inference) -> dict[str, Any]:
    """What `ChatOptions.from_options` takes, of a request's `options`, `format` and `logprobs`; never out of range."""
    options = request.options or Options()
    found: dict[str, Any] = {}
    for name, rule in _RULES.items():
        value = getattr(options, name)
        if value is not None and (converted := rule.convert(value)) is not None:
            found[rule.ours] = converted
    if request.logprobs:
        found["logprobs"], found["top_logprobs"] = True, request.top_logprobs
    if (form := _response_format(request.format)) is not None:
        found["response_format"] = form
    return found


def _response_format(form: Format | None) -> Mapping[str, Any] | None:
    """OpenAI's `response_format` of Ollama's `format`."""
    if isinstance(form, dict):
        return {"type": "json_object", "schema": form}
    return {"type": "json_object"} if form == "json" else None
