"""A chain of llama.cpp's samplers made from SamplingParams."""

import secrets
from typing import Any

from pyvllama._runtime import llama_cpp
from pyvllama.context import Context
from pyvllama.model import Model
from pyvllama.types import SamplingParams

__all__ = ["Sampler"]


class Sampler:
    """Chooses tokens from the logits of a context's last row. `close` is idempotent.

    Order as in llama.cpp's own programs: bias, penalties, top-k, top-p, min-p, temperature, choice. Penalties count the
    answer's tokens, not the prompt's.
    """

    def __init__(self, model: Model, params: SamplingParams) -> None:
        self._chain: Any = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        n_tokens = model.tokenizer.n_tokens
        # The image token and its padding copy a reserved token's row of lm_head: never an answer.
        barred = [*range(model.n_vocab, n_tokens)]
        if model.image_token < model.n_vocab:
            barred.append(model.image_token)
        if barred:
            bias = (llama_cpp.llama_logit_bias * len(barred))()
            for i, token in enumerate(barred):
                bias[i].token, bias[i].bias = token, float("-inf")
            self._add(llama_cpp.llama_sampler_init_logit_bias(n_tokens, len(barred), bias))
        if params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0:
            last_n = params.penalty_last_n if params.penalty_last_n >= 0 else model.n_ctx_train
            self._add(
                llama_cpp.llama_sampler_init_penalties(
                    n_tokens, last_n, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
                )
            )
        if params.temperature <= 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
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

    def sample(self, context: Context) -> int:
        """Choose the token that follows the context's last row, and count it."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context.handle, -1))

    def close(self) -> None:
        """Free the chain."""
        chain, self._chain = getattr(self, "_chain", None), None
        if chain is not None:
            llama_cpp.llama_sampler_free(chain)

    def __del__(self) -> None:
        self.close()
