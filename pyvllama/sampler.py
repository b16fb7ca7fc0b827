"""From a row of logits to a token: a chain of llama.cpp's samplers, with a grammar beside it where one is asked for."""

import ctypes
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvllama._runtime import llama_cpp
from pyvllama.context import Context
from pyvllama.errors import ConfigError
from pyvllama.grammar import Constraint
from pyvllama.model import Model
from pyvllama.types import SamplingParams

__all__ = ["Sampled", "Sampler"]

_NEVER = float("-inf")
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token.

    Attributes:
        token: its id.
        logprob: log of its probability by the model's own logits, before any option changed them; None if not asked.
        top: (token, logprob) of the likeliest ones, likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses tokens. `close` is idempotent. Not thread-safe.

    Order as in llama.cpp's own programs: bias, penalties, top-k, top-p, min-p, temperature, choice. Penalties count the
    answer's tokens, not the prompt's. A grammar is asked about the chosen token alone, and only where it refuses that,
    about all of them (asking about 128,256 tokens takes milliseconds).

    Raises:
        ConfigError: the constraint is no grammar, or the bias names a token that does not exist.
    """

    def __init__(self, model: Model, params: SamplingParams, constraint: Constraint | None = None) -> None:
        self._n_tokens: int = model.tokenizer.n_tokens
        self._n_vocab: int = model.n_vocab  # beyond are the image token and its padding: never an answer
        self._n_top = params.top_logprobs
        self._grammar: Any = None
        self._chain: Any = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._add_bias(model, params.logit_bias)
        if params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0:
            n_ctx = model.n_ctx_train  # llama.cpp takes memory for as many tokens as it is told, 8 GiB at most
            last_n = min(params.penalty_last_n, n_ctx) if params.penalty_last_n >= 0 else n_ctx
            self._add(
                llama_cpp.llama_sampler_init_penalties(
                    self._n_tokens, last_n, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
                )
            )
        if params.temperature <= 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
        else:
            self._add_choice(params)
        if constraint is not None:
            self._grammar = _grammar_sampler(model, constraint)

    def _add_bias(self, model: Model, logit_bias: tuple[tuple[int, float], ...]) -> None:
        if bad := [token for token, _ in logit_bias if not 0 <= token < self._n_vocab]:
            raise ConfigError(f"logit_bias names token {bad[0]}, but tokens go from 0 to {self._n_vocab - 1}")
        # The image token and its padding copy a reserved token's row of lm_head: never an answer.
        barred = [*range(self._n_vocab, self._n_tokens)]
        if model.image_token < self._n_vocab:
            barred.append(model.image_token)
        biases = [*((token, _NEVER) for token in barred), *logit_bias]
        if not biases:
            return
        array = (llama_cpp.llama_logit_bias * len(biases))()
        for i, (token, bias) in enumerate(biases):
            array[i].token, array[i].bias = token, bias
        self._add(llama_cpp.llama_sampler_init_logit_bias(self._n_tokens, len(biases), array))

    def _add_choice(self, params: SamplingParams) -> None:
        if params.top_k > 0:
            self._add(llama_cpp.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            self._add(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            self._add(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
        self._add(llama_cpp.llama_sampler_init_temp(params.temperature))
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Context, row: int = -1) -> Sampled:
        """Choose the token that follows a row of the context's last batch, and count it.

        Args:
            context: has just decoded.
            row: its index in that batch; -1: the last one.
        """
        if self._grammar is None:
            token = int(llama_cpp.llama_sampler_sample(self._chain, context.handle, row))
        else:
            token = self._sample_constrained(context.row_logits(row))
        if self._n_top is None:
            return Sampled(token)
        return _with_logprobs(token, context.row_logits(row)[: self._n_vocab], self._n_top)

    def _sample_constrained(self, logits: npt.NDArray[np.float32]) -> int:
        token = self._choose(logits, constrained=False)
        if not self._allows(token):
            token = self._choose(logits, constrained=True)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: npt.NDArray[np.float32], *, constrained: bool) -> int:
        data = np.empty(len(logits), _TOKEN_DATA)
        data["id"] = np.arange(len(logits), dtype=np.int32)
        data["logit"] = logits
        data["p"] = 0.0
        array = _candidates(data)
        if constrained:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        data = np.array([(token, 1.0, 0.0)], _TOKEN_DATA)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(_candidates(data)))
        return bool(data["logit"][0] != _NEVER)

    def close(self) -> None:
        """Free the chain and the grammar."""
        for name in ("_chain", "_grammar"):
            sampler = getattr(self, name, None)
            setattr(self, name, None)
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)

    def __del__(self) -> None:
        self.close()


def _candidates(data: npt.NDArray[Any]) -> Any:
    """llama_token_data_array over that memory."""
    pointer = data.ctypes.data_as(llama_cpp.llama_token_data_p)
    return llama_cpp.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)


def _grammar_sampler(model: Model, constraint: Constraint) -> Any:
    vocab = llama_cpp.llama_model_get_vocab(model.handle)
    text = constraint.grammar.encode()
    if constraint.trigger is None:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text, b"root")
    else:
        patterns = (ctypes.c_char_p * 1)(constraint.trigger.encode())
        sampler = llama_cpp.llama_sampler_init_grammar_lazy_patterns(vocab, text, b"root", patterns, 1, None, 0)
    if not sampler:
        raise ConfigError(
            "llama.cpp does not understand the grammar (with `pyvllama -v` its log says where): it must be GBNF with a "
            f"rule called root; it begins with {constraint.grammar[:80]!r}"
        )
    return sampler


def _with_logprobs(token: int, logits: npt.NDArray[np.float32], n_top: int) -> Sampled:
    """Log-softmax of a row, in float64: what is likely decides, not what is rare."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    top: list[tuple[int, float]] = []
    if n_top:
        best = np.argpartition(-x, min(n_top, len(x) - 1))[:n_top]
        top = [(int(i), float(x[i])) for i in best[np.lexsort((best, -x[best]))]]
    return Sampled(token, float(x[token]), tuple(top))
