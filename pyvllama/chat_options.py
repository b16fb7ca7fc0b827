"""What a chat request asks for beside its messages: OpenAI's and llama.cpp's options, read and checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyvllama.errors import ConfigError
from pyvllama.grammar import Constraint, choose_constraint
from pyvllama.types import SamplingParams

__all__ = ["ChatOptions"]

_MAX_CHOICES = 128  # OpenAI's own limit
_N_SEEDS = 2**32 - 1
_OWN = ("n", "logprobs", "top_logprobs", "response_format", "grammar", "tools", "tool_choice")


@dataclass(frozen=True)
class ChatOptions:
    """The options of one request.

    Attributes:
        params: how tokens are chosen.
        constraint: what an answer may look like.
        tools: OpenAI's function descriptions for the template; None where none may be called.
        n: answers.
    """

    params: SamplingParams
    constraint: Constraint | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    n: int = 1

    @classmethod
    def from_options(cls, defaults: SamplingParams, options: Mapping[str, Any]) -> "ChatOptions":
        """From what `LLM.chat` is given; an option that is None counts as not given.

        Raises:
            ConfigError: an unknown option, one out of range, or several that exclude one another.
        """
        own = {name: options.get(name) for name in _OWN}
        logprobs = own["logprobs"]
        if own["top_logprobs"] is not None and not logprobs:
            raise ConfigError("top_logprobs needs logprobs = True")
        n = options.get("n", 1)
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MAX_CHOICES:
            raise ConfigError(f"n must be a whole number between 1 and {_MAX_CHOICES}, not {n!r}")
        sampling = {name: value for name, value in options.items() if name not in _OWN}
        sampling["top_logprobs"] = (own["top_logprobs"] or 0) if logprobs else None
        return cls(
            params=SamplingParams.from_options(defaults, sampling),
            constraint=choose_constraint(own["grammar"], own["response_format"], own["tools"], own["tool_choice"]),
            tools=None if own["tool_choice"] == "none" else own["tools"],
            n=n,
        )

    def params_of(self, choice: int) -> SamplingParams:
        """Of the i-th answer: with a seed, its own is seed + i."""
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=(seed + choice) % _N_SEEDS)
