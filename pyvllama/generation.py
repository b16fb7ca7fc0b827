"""Tokens, one after another, from a prefilled session. Knows token ids only."""

import time
from collections.abc import Iterator

from pyvllama.draft import Draft, Speculation
from pyvllama.grammar import Constraint
from pyvllama.sampler import Sampled, Sampler
from pyvllama.session import Session
from pyvllama.types import SamplingParams, Timings

__all__ = ["generate"]


def generate(
    session: Session,
    params: SamplingParams,
    timings: Timings,
    constraint: Constraint | None = None,
    draft: Draft | None = None,
) -> Iterator[Sampled]:
    """Yield tokens until an end token, max_tokens or the end of the context; may be abandoned at any token.

    A token is decoded when the next one is asked for, so an abandoned generation leaves the session at the last token
    but one, ready for anything.

    Args:
        session: prefilled: the logits of its last row are the first to be sampled.
        params: how to choose.
        timings: `predicted_n` and `predicted_ms` grow as it goes, with a draft `draft_n` and `draft_n_accepted` too.
        constraint: what the answer may look like.
        draft: guesses tokens, which are then decoded several at a time. Each is still chosen by the same sampler from
            the same logits (up to the rounding of larger batches), one after another: the answer is the same.

    Yields:
        Tokens. The last one is an end token if and only if the model ended the answer.
    """
    context = session.context
    eog = context.model.tokenizer.eog
    sampler = Sampler(context.model, params, constraint)
    try:
        start = time.perf_counter()
        ahead = Speculation(session, draft, timings)
        row, n = -1, 0
        while True:
            sampled = sampler.sample(context, row)
            n += 1
            timings.predicted_n += 1
            timings.predicted_ms += 1000 * (time.perf_counter() - start)
            yield sampled
            if sampled.token in eog or n == params.max_tokens or session.n_left < 1:
                return
            start = time.perf_counter()
            row = ahead.append(sampled.token, None if params.max_tokens is None else params.max_tokens - n)
    finally:
        sampler.close()
