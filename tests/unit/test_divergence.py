"""KL divergence and its company, against distributions made by hand and plain loops in Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyvllama.divergence import TokenFigures, compare, concatenate, summarize


def logits(*rows):
    """Logits of rows of probabilities, each shifted by another constant, which changes nothing."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows)) + 10.0 * np.arange(len(rows))[:, None]


def test_by_hand():
    p = logits([0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5])
    q = logits([0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.2, 0.3, 0.5])
    figures = compare(p, q, [0, 1, 2])
    np.testing.assert_allclose(figures.kld, [0.25 * math.log(2), math.log(2), 0.0], atol=1e-15)
    np.testing.assert_allclose(figures.log_p, np.log([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(figures.log_p_reference, np.log([0.5, 0.5, 0.5]))
    assert figures.same_top.tolist() == [False, False, True]
    d = summarize(figures)
    assert d.n_tokens == 3
    assert d.kld_mean == pytest.approx(1.25 * math.log(2) / 3)
    assert d.kld_median == pytest.approx(0.25 * math.log(2)) and d.kld_max == pytest.approx(math.log(2))
    assert d.kld_p90 == pytest.approx((0.2 * 0.25 + 0.8) * math.log(2))  # between the second and the third
    assert d.same_top == pytest.approx(1 / 3)
    assert d.ppl_reference == pytest.approx(2.0) and d.ppl == pytest.approx((4 * 4 * 2) ** (1 / 3))
    assert d.ppl_ratio == pytest.approx(d.ppl / 2.0) and d.log_p_diff == pytest.approx(-math.log(d.ppl_ratio))
    assert d.dp_mean == pytest.approx(-0.5 / 3) and d.dp_rms == pytest.approx(math.sqrt(2 * 0.25**2 / 3))
    assert d.kld_error == pytest.approx(np.std(figures.kld, ddof=1) / math.sqrt(3))
    assert set(d.as_dict()) == set(vars(d))


def test_what_the_model_thinks_impossible_costs_infinitely_much():
    figures = compare(logits([0.5, 0.5]), logits([1.0, 0.0]), [1])
    assert figures.kld[0] == math.inf and figures.log_p[0] == -math.inf
    assert compare(logits([1.0, 0.0]), logits([0.5, 0.5]), [0]).kld[0] == pytest.approx(math.log(2))


def brute_force(p, q):
    """In Python's own floats, summed without rounding."""
    zp, zq = (math.log(math.fsum(math.exp(x) for x in row)) for row in (p, q))
    return math.fsum(math.exp(a - zp) * ((a - zp) - (b - zq)) for a, b in zip(p, q, strict=True))


rows_of_logits = arrays(np.float32, (3, 7), elements=st.floats(-30, 30, width=32))


@settings(max_examples=60, deadline=None)
@given(rows_of_logits, rows_of_logits)
def test_against_plain_loops(p, q):
    kld = compare(p, q, [0, 1, 2]).kld
    for k in range(3):
        assert kld[k] == pytest.approx(brute_force(p[k].tolist(), q[k].tolist()), rel=1e-9, abs=1e-12)
    assert (kld >= 0).all()


@settings(max_examples=30, deadline=None)
@given(rows_of_logits, st.floats(-1e4, 1e4))
def test_a_constant_changes_nothing(p, constant):
    shifted = p.astype(np.float64) + constant
    np.testing.assert_allclose(compare(p, shifted, [0, 1, 2]).kld, 0.0, atol=1e-9)


def test_many_rows_of_a_large_vocabulary_are_the_same_in_any_cut():
    """More rows than are computed at once."""
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 40, 999)).astype(np.float32) * 3
    tokens = rng.integers(0, 999, 40).tolist()
    whole = compare(p, q, tokens)
    parts = [compare(p[i : i + 1], q[i : i + 1], tokens[i : i + 1]) for i in range(40)]
    together = concatenate(parts)
    for name in ("kld", "log_p", "log_p_reference", "same_top"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(together, name))
    assert summarize(whole) == summarize(together)


def test_small_divergences_keep_their_digits():
    """Two distributions a hundred-thousandth apart: second order, x^2/2 times the variance of the direction."""
    rng = np.random.default_rng(1)
    p, direction = rng.normal(size=(2, 1, 128256))
    probabilities = np.exp(p - p.max())
    probabilities /= probabilities.sum()
    variance = (probabilities * direction**2).sum() - (probabilities * direction).sum() ** 2
    assert compare(p, p + 1e-5 * direction, [0]).kld[0] == pytest.approx(0.5e-10 * variance, rel=1e-3)


def test_nothing_has_no_figures():
    assert summarize(concatenate([])) is None
    one = compare(logits([0.5, 0.5]), logits([0.5, 0.5]), [0])
    assert isinstance(one, TokenFigures) and math.isnan(summarize(one).kld_error)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    good, broken = np.zeros((1, 3)), np.array([[0.0, bad, 0.0]])
    for pair in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match="no numbers, or infinite ones"):
            compare(*pair, [0])
    with pytest.raises(ValueError, match="no numbers"):
        compare(good, np.full((1, 3), -math.inf), [0])


def test_shapes_that_do_not_fit_are_refused():
    for p, q, tokens in [((1, 3), (1, 4), [0]), ((1, 3), (1, 3), [0, 1]), ((3,), (3,), [0, 1, 2])]:
        with pytest.raises(ValueError, match="do not fit together"):
            compare(np.zeros(p), np.zeros(q), tokens)
