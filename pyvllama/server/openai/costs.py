"""What answers cost, in OpenAI's and llama-server's words."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from pyvllama.server.answer import Answer
from pyvllama.types import Timings, Usage

__all__ = ["costs_of", "timings_of", "usage_of"]

T = TypeVar("T", Usage, Timings)


def costs_of(*answers: Answer) -> dict[str, Any]:
    """`usage` and `timings` of one answer, or of several together."""
    return {"usage": usage_of(*answers), "timings": timings_of(*answers)}


def usage_of(*answers: Answer) -> dict[str, Any]:
    """OpenAI's `usage`."""
    usage, timings = _sums(answers)
    return {**usage.as_dict(), "prompt_tokens_details": {"cached_tokens": _n_cached(usage, timings)}}


def timings_of(*answers: Answer) -> dict[str, Any]:
    """llama-server's `timings`, with the pictures' time; milliseconds."""
    usage, timings = _sums(answers)
    return {
        "cache_n": _n_cached(usage, timings),
        **timings.as_dict(),
        "prompt_per_token_ms": timings.prompt_ms / max(1, timings.prompt_n),
        "predicted_per_token_ms": timings.predicted_ms / max(1, timings.predicted_n),
    }


def _sums(answers: tuple[Answer, ...]) -> tuple[Usage, Timings]:
    return _sum(Usage(), [a.usage for a in answers]), _sum(Timings(), [a.timings for a in answers])


def _sum(total: T, parts: Sequence[T]) -> T:
    """Field by field; what is None is left out."""
    for field in fields(total):
        known = [value for part in parts if (value := getattr(part, field.name)) is not None]
        if known:
            setattr(total, field.name, sum(known))
    return total


def _n_cached(usage: Usage, timings: Timings) -> int:
    """Prompt tokens that were not computed. With several choices each computes what it does not share."""
    return max(0, usage.prompt_tokens - timings.prompt_n)
