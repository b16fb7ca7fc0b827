"""On which devices the parts of a model are: decided here, and llama.cpp told, so that both know the same."""

from dataclasses import dataclass
from itertools import accumulate

from pyvllama._runtime import llama_cpp, native

__all__ = ["Placement", "place"]

_CPU = "cpu"
_MAX_LAYERS = 512  # llama.cpp's own


@dataclass(frozen=True, slots=True)
class Placement:
    """Devices by ggml's names.

    Attributes:
        tower: of the vision tower and its projector.
        layers: of the outputs of the text model's layers. A cross-attention layer is where the output is that it
            rewrites.
        devices: ggml_backend_dev_t of each device that text layers may be on.
        shares: how many each of them takes, the output counted as one more layer; llama.cpp's tensor_split.
    """

    tower: str = _CPU
    layers: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()


def place(n_layers: object, n_gpu_layers: int, *, mmproj_offload: bool, n_tower_bytes: int) -> Placement:
    """What goes where: the last text layers on the GPU, as llama.cpp has it; on several by their free memory.

    Args:
        n_layers: of the text model, as its file has it.
        n_gpu_layers: text layers for the GPU, the output counted as one; -1: all.
        mmproj_offload: whether the vision tower is to be there, too, on the first GPU.
        n_tower_bytes: how much that takes.
    """
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
    return Placement(names[0] if mmproj_offload else _CPU, tuple(layers[:n_layers]), handles, shares)
