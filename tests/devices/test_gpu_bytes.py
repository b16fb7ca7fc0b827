"""How much of a model is said to be on the GPUs, and how much is there."""

import asyncio
import time

import pytest
from starlette.testclient import TestClient

from pyvllama.benchmark import benchmark
from pyvllama.model import Model
from pyvllama.server.app import create_app
from pyvllama.server.served_model import ServedModel
from pyvllama.server.settings import Settings


def used(devices):
    return sum(devices.stats(i).n_used for i in range(2))


@pytest.mark.parametrize("n_gpu_layers", [1, 2, 4, -1])
@pytest.mark.parametrize("mmproj_offload", [True, False])
def test_it_is_what_the_devices_hold(devices, tiny_pair, n_gpu_layers, mmproj_offload):
    pair = tiny_pair("small")
    options = {"n_gpu_layers": n_gpu_layers, "mmproj_offload": mmproj_offload, "n_threads": 1}
    before = used(devices)
    model = Model(pair.text, pair.mmproj, **options)
    held = used(devices) - before
    model.close()
    served = ServedModel.load("x", pair.text, pair.mmproj, n_ctx=64, **options)
    said = served.gpu_bytes
    asyncio.run(served.close())
    assert 0 < said <= held < 1.02 * said + 8192  # of each tensor the last bytes up to the next alignment


@pytest.mark.parametrize(("n_gpu_layers", "mmproj_offload"), [(0, True), (3, True), (-1, False), (-1, True)])
def test_ps(devices, pocket_pair, n_gpu_layers, mmproj_offload):
    settings = Settings(n_ctx=64, n_threads=1, n_gpu_layers=n_gpu_layers, mmproj_offload=mmproj_offload)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        while client.get("/health").status_code != 200:
            time.sleep(0.01)
        (model,) = client.get("/api/ps").json()["models"]
    share = model["size_vram"] / model["size"]
    assert (share == 0) == (n_gpu_layers == 0)
    assert (share == 1) == (n_gpu_layers == -1 and mmproj_offload)


@pytest.mark.parametrize(("options", "layers", "tower"), [
    ({}, 0, "CPU"), ({"n_gpu_layers": 3}, 3, "FAKE0"), ({"n_gpu_layers": -1, "mmproj_offload": False}, 6, "CPU"),
])  # fmt: skip
def test_what_bench_says(devices, pocket_pair, options, layers, tower):
    quick = {"n_prompt": (4,), "n_gen": (), "n_tiles": (1,), "repetitions": 1, "n_threads": 1}
    result = benchmark(pocket_pair.text, pocket_pair.mmproj, **quick, **options)
    assert result.backend == ("FAKE0,FAKE1" if layers else "CPU")
    assert (result.gpu_layers, result.tower) == (layers, tower)
