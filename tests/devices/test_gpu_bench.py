"""tools/bench/gpu.py runs to its end, here on a device that is no GPU: what it measures there means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "tools" / "bench" / "gpu.py"


def run(*arguments):
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    environment = os.environ | {"PYVLLAMA_FAKE_DEVICES": "2048", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize("options", [(), ("-ngl", 3, "--no-mmproj-offload")], ids=["all", "some"])
def test_the_whole_command(_library, pocket_pair, tmp_path, options):
    path = tmp_path / "result.json"
    options = (*options, "--backend", _library, "--rounds", 1, "--threads", 1, "--cross-kv-type", "f32")
    done = run(pocket_pair.text, *options, "--json", path)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["tower"] == ("CPU" if "--no-mmproj-offload" in options else "FAKE0")
    assert result["devices"] == ["CPU", "FAKE0"]
    assert result["parity"]["states of 1 tile"] < 1e-4
    assert result["parity"]["logits"] < 1e-2  # self-attention's keys and values are in F16
    assert result["bars"].keys() == {
        *("text only of stock", "4 tiles of the bound"), *("prompt over its share", "encode over PyTorch")
    }  # fmt: skip
    assert all(ms > 0 for kind in ("token_ms", "prompt_ms", "encode_ms") for ms in result[kind].values())
    for line in ("tower on", "against the CPU", "ms a token", "bar >= 0.99", "bar <= 1.15"):
        assert line in done.stdout


def test_without_a_gpu_it_says_so(_library, pocket_pair):
    done = run(pocket_pair.text)
    assert done.returncode != 0
    assert "finds no GPU here, only CPU" in done.stderr
