"""What must hold, as functions: error measures, the table of bounds, and properties that several tests check."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cases import Case
from harness import Decoder, plan

# Largest error of any logit, in units of the logits' RMS, against the oracle in float32. The tiny models' weights are
# random, so no logit stands out as it does in a trained model, and each bound is about twice what was measured.
F32_BOUND = 1e-5


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def max_error(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> float:
    """Largest |got - want| in units of scale, by default want's RMS."""
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.isfinite(got).all()
    return float(np.abs(got.astype(np.float64) - want).max() / (scale or rms(want)))


def rms_error(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> float:
    """RMS of got - want in units of scale, by default want's RMS: the square root of the NMSE."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return rms(got.astype(np.float64) - want) / (scale or rms(want))


def assert_same_logits_for_any_split(
    decoder: Decoder, case: Case, splits: Sequence[Sequence[int]], want: np.ndarray, bound: float = F32_BOUND
) -> None:
    """However a prompt is cut into llama_decode calls, its logits are the same.

    The bug class: a row's image is looked up by its place in a ubatch instead of its place in the batch or sequence.
    """
    images = [decoder.encode(image) for image in case.images]
    for pieces in splits:
        got = decoder.logits(case, pieces, images=images)[:, : want.shape[1]]
        error = max_error(got, want)
        assert error <= bound, f"{case.name} in pieces of {list(pieces)}: {error:.1e}"


def interleave(parts: Sequence[list[Any]], how: str) -> list[Any]:
    """Rows of several sequences as one batch: "blocks", "alternating", or "ragged" (turns of 1, 2, 3, 1, ... rows)."""
    if how == "blocks":
        return [row for part in parts for row in part]
    queues, out, turn = [list(part) for part in parts], [], 0
    while any(queues):
        n = 1 if how == "alternating" else turn % 3 + 1
        queue = queues[turn % len(queues)]
        out += queue[:n]
        del queue[:n]
        turn += 1
    return out


def assert_batch_equals_singles(
    decoder: Decoder, cases: Sequence[Case], singles: Sequence[np.ndarray], how: str, bound: float = F32_BOUND
) -> None:
    """Several sequences, each with its own images, in one llama_decode give what each gives alone.

    The bug class: llama.cpp's own README warns that eval callbacks are not meant for several sequences; rows may be
    reordered between the batch and its ubatches.
    """
    decoder.clear()
    parts, groups = [], []
    for sequence, case in enumerate(cases):
        rows, own = plan(case, [decoder.encode(image) for image in case.images], sequence, len(groups))
        parts.append(rows)
        groups += own
    rows = interleave(parts, how)
    got = decoder.decode(rows, groups)
    for sequence, want in enumerate(singles):
        own = got[[i for i, row in enumerate(rows) if row.sequence == sequence], : want.shape[1]]
        error = max_error(own, want)
        assert error <= bound, f"sequence {sequence} ({cases[sequence].name}), {how}: {error:.1e}"
