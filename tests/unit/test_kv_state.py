"""What llama.cpp would assert on in a sequence's state is refused before."""

import numpy as np
import pytest

from pyvllama.errors import FormatError
from pyvllama.kv_state import check_kv_state, kv_state_bytes


def state(positions, n_seqs=None, n_streams=1, n_cells=None):
    cells = np.zeros((len(positions), 3), "<i4")
    cells[:, 0] = positions
    cells[:, 1] = 1 if n_seqs is None else n_seqs
    head = np.array([0, 0, n_streams, len(positions) if n_cells is None else n_cells], "<u4")
    return np.concatenate([head.view(np.uint8), cells.reshape(-1).view(np.uint8), np.zeros(100, np.uint8)])


@pytest.mark.parametrize("positions", [[], [0], [0, 1, 2], [2, 0, 1]])
def test_positions_in_any_order(positions):
    check_kv_state(state(positions), len(positions))


@pytest.mark.parametrize("positions", [[1], [-1], [0, 0], [0, 2], [0, -1], [0, 2**31 - 1], [-(2**31), 0]])
def test_other_positions(positions):
    with pytest.raises(FormatError, match="does not hold the positions"):
        check_kv_state(state(positions), len(positions))


@pytest.mark.parametrize("n_seqs", [0, 2, -1])
def test_cells_of_other_than_one_sequence(n_seqs):
    with pytest.raises(FormatError, match="one sequence"):
        check_kv_state(state([0, 1], [1, n_seqs]), 2)


@pytest.mark.parametrize("other", [{"n_streams": 0}, {"n_streams": 2}, {"n_cells": 1}, {"n_cells": 2**32 - 1}])
def test_other_numbers_of_cells_or_streams(other):
    with pytest.raises(FormatError, match="not 2 in 1"):
        check_kv_state(state([0, 1], **other), 2)


def test_sizes():
    assert kv_state_bytes(0, 30, 100) == 16
    assert kv_state_bytes(2, 3, 100) == 16 + 2 * 12 + 8 + 3 * 2 * 12 + 2 * 3 * 100  # what llama.cpp gives: tests/api
