"""Tokens, one after another, from a prefilled session. Knows token ids only."""

import time
from collections.abc import Iterator

from pyvllama.grammar import Constraint
from pyvllama.sampler import Sampled, Sampler
from pyvllama.session import Cell, Session
from pyvllama.types import SamplingParams, Timings

__all__ = ["generate"]


def generate(
    session: Session, params: SamplingParams, timings: Timings, constraint: Constraint | None = None
) -> Iterator[Sampled]:
    """Yield tokens until an end token, max_tokens or the end of the context; may be abandoned at any token.

    A token is decoded when the next one is asked for, so an abandoned generation leaves the session at the last token
    but one, ready for anything.

    Args:
        session: prefilled: the logits of its last row are the first to be sampled.
        params: how to choose.
        timings: `predicted_n` and `predicted_ms` grow as it goes.
        constraint: what the answer may look like.

    Yields:
        Tokens. The last one is an end token if and only if the model ended the answer.
    """
    context = session.context
    eog = context.model.tokenizer.eog
    sampler = Sampler(context.model, params, constraint)
    try:
        start = time.perf_counter()
        while True:
            sampled = sampler.sample(context)
            timings.predicted_n += 1
            timings.predicted_ms += 1000 * (time.perf_counter() - start)
            yield sampled
            if sampled.token in eog or timings.predicted_n == params.max_tokens or session.n_left < 1:
                return
            start = time.perf_counter()
            session.append(Cell(sampled.token))
    finally:
        sampler.close()
