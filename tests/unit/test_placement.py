"""Which layer goes to which device."""

import pytest

from pyvllama import placement
from pyvllama.placement import Placement, place

GIB = 1 << 30
CPU = "cpu"


@pytest.fixture
def gpus(monkeypatch):
    def there_are(*free):
        devices = [(f"GPU{i}", n * GIB, 1000 + i) for i, n in enumerate(free)]
        monkeypatch.setattr(placement.native, "offload_devices", lambda: devices)

    return there_are


def of(n_layers, n_gpu_layers, *, mmproj_offload=True, n_tower_bytes=0):
    return place(n_layers, n_gpu_layers, mmproj_offload=mmproj_offload, n_tower_bytes=n_tower_bytes)


def test_without_a_gpu_everything_is_on_the_cpu(gpus):
    gpus()
    assert of(4, -1) == of(4, 0) == Placement()


def test_no_layers_on_the_gpu_means_no_tower_there_either(gpus):
    gpus(8)
    assert of(4, 0) == Placement()


@pytest.mark.parametrize("n_gpu_layers", [-1, 5, 99])
@pytest.mark.parametrize("mmproj_offload", [True, False])
def test_all_layers_on_one_gpu(gpus, n_gpu_layers, mmproj_offload):
    gpus(8)
    found = of(4, n_gpu_layers, mmproj_offload=mmproj_offload)
    assert found == Placement("GPU0" if mmproj_offload else CPU, ("GPU0",) * 4, (1000,), (5,), ("GPU0",))
    assert found.gpus == ("GPU0",)
    assert found.is_all_on_gpus == mmproj_offload


def test_the_last_layers_first(gpus):
    """The output is the first one to go; what is added up at the end of the last CPU layer is on the GPU."""
    gpus(8)
    assert of(5, 1) == Placement("GPU0", (*[CPU] * 4, "GPU0"), (1000,), (1,), ("GPU0",))
    assert of(5, 2).layers == (CPU, CPU, CPU, "GPU0", "GPU0")
    assert of(5, 4).layers == (CPU, *["GPU0"] * 4)
    assert of(5, 4).shares == (4,)


def test_several_gpus_share_by_their_free_memory(gpus):
    gpus(6, 2)
    found = of(7, -1)
    assert found.layers == ("GPU0",) * 6 + ("GPU1",)
    assert (found.devices, found.shares) == ((1000, 1001), (6, 2))
    # of layers 4 to 7 and the output
    assert of(8, 4).layers == (CPU,) * 4 + ("GPU0",) * 4
    assert of(8, 4).shares == (3, 1)
    assert of(8, 4).gpus == ("GPU0", "GPU1")  # the output alone is on the second
    assert not of(8, 8).is_all_on_gpus


def test_the_tower_takes_room_on_the_first_gpu(gpus):
    gpus(4, 4)
    assert of(7, -1, n_tower_bytes=2 * GIB).shares == (3, 5)
    assert of(7, -1, n_tower_bytes=2 * GIB, mmproj_offload=False).shares == (4, 4)
    assert of(7, -1, n_tower_bytes=9 * GIB).shares == (0, 8)
    assert of(7, -1, n_tower_bytes=9 * GIB).gpus == ("GPU0", "GPU1")


@pytest.mark.parametrize("free", [(0, 0), (0, 1), (3, 0, 5), (1, 1, 1)])
@pytest.mark.parametrize("n_gpu_layers", range(-1, 9))
def test_every_layer_has_one_place(gpus, free, n_gpu_layers):
    gpus(*free)
    found = of(6, n_gpu_layers)
    if n_gpu_layers == 0:
        assert found == Placement()
        return
    assert len(found.layers) == 6
    assert sum(found.shares) == (7 if n_gpu_layers < 0 else min(n_gpu_layers, 7))
    assert all(n >= 0 for n in found.shares)
    assert len(found.shares) == len(found.devices) == len(free)


@pytest.mark.parametrize("n_layers", [None, "32", -1, 0, 1 << 40, True, [1]])
def test_a_file_that_makes_no_sense_is_refused_elsewhere(gpus, n_layers):
    gpus(8)
    assert of(n_layers, -1) == Placement()
