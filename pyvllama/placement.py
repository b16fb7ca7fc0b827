"""On which devices the parts of a model are: decided here, and llama.cpp told, so that both know the same."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pyvllama._runtime import llama_cpp, native
from pyvllama.errors import ConfigError

__all__ = ["Placement", "gpu_bytes", "place"]

_CPU = "cpu"
_MAX_LAYERS = 512  # llama.cpp's own
_LAYER = re.compile(r"blk\.(\d+)\.")
# of the tower: looked up on the CPU, wherever it is
_HOST_TABLES = (
    *("v.class_embd", "v.position_embd", "v.tile_position_embd", "v.pre_tile_position_embd"),
    *("v.post_tile_position_embd", "mm.image_token_embd"),
)
_CROSS_LAYER = re.compile(r"xattn\.blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Placement:
    """Devices by ggml's names.

    Attributes:
        tower: of the vision tower and its projector.
        layers: of the outputs of the text model's layers. A cross-attention layer is where the output is that it
            rewrites.
        devices: ggml_backend_dev_t of each device that text layers may be on.
        shares: how many each of them takes, the output counted as one more layer; llama.cpp's tensor_split.
        names: theirs.
    """

    tower: str = _CPU
    layers: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[str, ...]:
        """Those with anything on them."""
        return tuple(n for n, share in zip(self.names, self.shares, strict=True) if share or n == self.tower)

    @property
    def is_all_on_gpus(self) -> bool:
        """Whether nothing is left to the CPU but what always is: the lookup of tokens' embeddings."""
        return self.tower != _CPU and sum(self.shares) == len(self.layers) + 1


def gpu_bytes(
    placement: Placement, text: Mapping[str, int], mmproj: Mapping[str, int], cross_layers: Sequence[int]
) -> int:
    """How much of a pair's weights is on GPUs.

    Args:
        placement: where all of it is.
        text, mmproj: tensor -> bytes, of both files.
        cross_layers: numbers of the cross-attention layers, among all layers.
    """
    first = len(placement.layers) + 1 - sum(placement.shares)  # of the text layers that are there
    found = 0
    for name, n_bytes in text.items():
        of_layer = _LAYER.match(name)
        if of_layer:
            found += n_bytes * (int(of_layer[1]) >= first)
        elif name.startswith("output") or (name == "token_embd.weight" and "output.weight" not in text):
            found += n_bytes * (sum(placement.shares) > 0)  # the embedding itself is always on the CPU
    before = {layer: layer - i - 1 for i, layer in enumerate(sorted(cross_layers))}  # the text layer that it follows
    for name, n_bytes in mmproj.items():
        if name.startswith(_HOST_TABLES):
            continue
        of_layer = _CROSS_LAYER.match(name)
        device = placement.layers[before[int(of_layer[1])]] if of_layer and placement.layers else placement.tower
        found += n_bytes * (device != _CPU)
    return found


def place(n_layers: object, n_gpu_layers: int, *, mmproj_offload: bool, n_tower_bytes: int) -> Placement:
    """What goes where: the last text layers on the GPU, as llama.cpp has it; on several by their free memory.

    Args:
        n_layers: of the text model, as its file has it.
        n_gpu_layers: text layers for the GPU, the output counted as one; -1: all.
        mmproj_offload: whether the vision tower is to be there, too, on the first GPU.
        n_tower_bytes: how much that takes.

    Raises:
        ConfigError: n_gpu_layers is no number that llama.cpp takes.
    """
    if type(n_gpu_layers) is not int or not -(2**31) <= n_gpu_layers < 2**31:
        raise ConfigError(f"n_gpu_layers must be a number of layers, or -1 for all, not {n_gpu_layers!r}")
    found = native.offload_devices()[: llama_cpp.llama_max_devices()] if n_gpu_layers != 0 else []
    if not found or type(n_layers) is not int or not 0 < n_layers <= _MAX_LAYERS:
        return Placement()  # files that make no sense are refused once they are read
    names, free, handles = zip(*found, strict=True)
    room = [max(n - (n_tower_bytes if mmproj_offload and i == 0 else 0), 0) for i, n in enumerate(free)]
    whole = sum(room) or 1
    n_offloaded = n_layers + 1 if n_gpu_layers < 0 else min(n_gpu_layers, n_layers + 1)
    ends = [round(n_offloaded * n / whole) for n in accumulate(room)]
    ends[-1] = n_offloaded
    shares = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    n_on_cpu = n_layers + 1 - n_offloaded
    layers = [_CPU] * n_on_cpu
    for name, n in zip(names, shares, strict=True):
        layers += [name] * n
    if n_on_cpu > 0:
        # The weights of the last one on the CPU are there, but the sum at its end needs none: llama.cpp computes it on
        # the device that goes on with it.
        layers[n_on_cpu - 1] = layers[n_on_cpu]
    return Placement(names[0] if mmproj_offload else _CPU, tuple(layers[:n_layers]), handles, shares, names)
