"""What llama.cpp writes of a sequence in its KV cache, checked before llama.cpp reads it again.

llama.cpp believes the positions in there and asserts on them, which would end the Python process. Layout of
llama_state_seq_get_data (llama-context.cpp, llama-kv-cache.cpp: state_write), numbers little-endian::

    uint32 magic, int32 sequence, uint32 streams = 1, uint32 cells
    for each cell: int32 position, uint32 sequences = 1, int32 sequence
    uint32 is V transposed, uint32 layers
    for each layer: int32 type, uint64 bytes of a row, the cells' keys
    for each layer: 12 bytes likewise, the cells' values

llama.cpp itself compares types, sizes and the number of layers with its own and refuses what differs.
"""

import numpy as np
import numpy.typing as npt

from pyvllama.errors import FormatError

__all__ = ["check_kv_state", "kv_state_bytes"]

_HEAD = np.dtype([("magic", "<u4"), ("seq", "<i4"), ("n_streams", "<u4"), ("n_cells", "<u4")])
_CELL = np.dtype([("position", "<i4"), ("n_seqs", "<u4"), ("seq", "<i4")])


def kv_state_bytes(n_cells: int, n_layers: int, layer_bytes: int) -> int:
    """Bytes of the state of a sequence.

    Args:
        n_cells: its positions.
        n_layers: self-attention layers.
        layer_bytes: bytes of a position's keys and values in one layer.
    """
    if n_cells == 0:
        return _HEAD.itemsize
    return _HEAD.itemsize + n_cells * (_CELL.itemsize + n_layers * layer_bytes) + 8 + 24 * n_layers


def check_kv_state(state: npt.NDArray[np.uint8], n_cells: int) -> None:
    """Refuse a state that llama.cpp would die of.

    Args:
        state: uint8 [kv_state_bytes(n_cells, ...)].
        n_cells: positions that it must hold: 0 to n_cells - 1, in any order.

    Raises:
        FormatError: says what is wrong.
    """
    head = state[: _HEAD.itemsize].view(_HEAD)[0]
    if (head["n_streams"], head["n_cells"]) != (1, n_cells):
        raise FormatError(
            f"the KV cache has {head['n_cells']} cells in {head['n_streams']} streams, not {n_cells} in 1"
        )
    cells = state[_HEAD.itemsize : _HEAD.itemsize + n_cells * _CELL.itemsize].view(_CELL)
    if not np.array_equal(np.sort(cells["position"]), np.arange(n_cells)) or np.any(cells["n_seqs"] != 1):
        raise FormatError(f"the KV cache does not hold the positions 0 to {n_cells - 1} of one sequence")
