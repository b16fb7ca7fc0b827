"""How far a model's token probabilities are from a reference's: pure numerics, in float64.

The figures are those of llama.cpp's `llama-perplexity --kl-divergence`, under the names that people know from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

__all__ = ["Divergence", "TokenFigures", "compare", "concatenate", "summarize"]

_ROWS_AT_ONCE = 16  # 128 thousand tokens in float64 are 1 MB a row, and there are a few arrays of them


@dataclass(frozen=True, eq=False)
class TokenFigures:
    """Of each token, arrays of one length.

    Attributes:
        kld: Kullback-Leibler divergence of the model's distribution from the reference's, in nats.
        log_p: natural log of the probability that the model gives to the token that came.
        log_p_reference: that of the reference.
        same_top: whether both find the same token likeliest.
    """

    kld: npt.NDArray[np.float64]
    log_p: npt.NDArray[np.float64]
    log_p_reference: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Divergence:
    """Figures over many tokens. Probabilities and shares are fractions of 1.

    Attributes:
        n_tokens: tokens compared.
        kld_mean: mean divergence in nats; 0: equal distributions.
        kld_error: standard error of that mean, as if tokens were independent of one another.
        kld_median, kld_p90, kld_p99, kld_p99_9, kld_max: its distribution over tokens.
        same_top: share of tokens for which both find the same one likeliest.
        ppl, ppl_reference: perplexity of the tokens that came.
        ppl_ratio: of the two; 1: equal.
        log_p_diff: mean of ln p(model) - ln p(reference) of the token that came: -ln(ppl_ratio).
        dp_mean, dp_rms: mean and root mean square of p(model) - p(reference) of the token that came.
    """

    n_tokens: int
    kld_mean: float
    kld_error: float
    kld_median: float
    kld_p90: float
    kld_p99: float
    kld_p99_9: float
    kld_max: float
    same_top: float
    ppl: float
    ppl_reference: float
    ppl_ratio: float
    log_p_diff: float
    dp_mean: float
    dp_rms: float

    def as_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


def compare(
    reference: npt.NDArray[np.floating], model: npt.NDArray[np.floating], tokens: Sequence[int]
) -> TokenFigures:
    """Compare two models row by row.

    Args:
        reference: logits [n_rows, n_vocab]; -inf is probability 0.
        model: logits of the same shape.
        tokens: n_rows ids: the token that came after each row.

    Raises:
        ValueError: shapes that do not fit, or logits that are no numbers.
    """
    if reference.ndim != 2 or reference.shape != model.shape or len(tokens) != len(reference):
        raise ValueError(f"logits {reference.shape} and {model.shape} of {len(tokens)} tokens do not fit together")
    parts = []
    for first in range(0, len(tokens), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        parts.append(_compare(reference[rows], model[rows], np.asarray(tokens[rows])))
    return concatenate(parts)


def concatenate(parts: Sequence[TokenFigures]) -> TokenFigures:
    """Figures of several runs of tokens as one."""
    empty = TokenFigures(np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.bool_))
    return TokenFigures(*(np.concatenate([getattr(p, f.name) for p in (empty, *parts)]) for f in fields(TokenFigures)))


def summarize(figures: TokenFigures) -> Divergence | None:
    """The figures of all tokens together; None if there are none."""
    n = len(figures.kld)
    if n == 0:
        return None
    nll, nll_reference = -figures.log_p.mean(), -figures.log_p_reference.mean()
    dp = np.exp(figures.log_p) - np.exp(figures.log_p_reference)
    median, p90, p99, p99_9 = (float(q) for q in np.quantile(figures.kld, [0.5, 0.9, 0.99, 0.999]))
    return Divergence(
        n_tokens=n,
        kld_mean=float(figures.kld.mean()),
        kld_error=float(figures.kld.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        kld_median=median,
        kld_p90=p90,
        kld_p99=p99,
        kld_p99_9=p99_9,
        kld_max=float(figures.kld.max()),
        same_top=float(figures.same_top.mean()),
        ppl=float(np.exp(nll)),
        ppl_reference=float(np.exp(nll_reference)),
        ppl_ratio=float(np.exp(nll - nll_reference)),
        log_p_diff=float(nll_reference - nll),
        dp_mean=float(dp.mean()),
        dp_rms=float(np.sqrt(np.mean(dp**2))),
    )


def _compare(
    reference: npt.NDArray[np.floating], model: npt.NDArray[np.floating], tokens: npt.NDArray[np.int_]
) -> TokenFigures:
    lp, lq = _log_softmax(reference), _log_softmax(model)
    p = np.exp(lp)
    with np.errstate(invalid="ignore"):  # -inf less -inf, where p is 0 and nothing is added
        kld = np.where(p > 0, p * (lp - lq), 0.0).sum(axis=1)
    at = np.arange(len(tokens))
    return TokenFigures(
        kld=np.maximum(kld, 0.0),  # rounding alone can make it negative
        log_p=lq[at, tokens],
        log_p_reference=lp[at, tokens],
        same_top=lp.argmax(axis=1) == lq.argmax(axis=1),
    )


def _log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    highest = x.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise ValueError("a row of logits holds no numbers, or infinite ones")
    x -= highest
    result: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result
