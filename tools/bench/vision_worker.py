"""One contestant of vision.py in a process of its own, so that one's waiting threads do not disturb another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

N_TILES = (4, 1)
CANVAS = {4: [2, 2], 1: [1, 1]}
PARTS = {  # kinds of nodes (see encode's parts_ms) -> parts; others are "rest"
    "product": "products",
    "pack": "weights unpacked",
    "attention": "attention",
    "pack heads": "attention",
    "projector": "projector and embeddings",
    "stack": "projector and embeddings",
    "gelu": "gelu",
    "GELU_ERF": "gelu",
    "norm": "norms",
    "NORM": "norms",
}


class Worker:
    """A process that encodes a picture whenever it is asked to."""

    def __init__(self, kind: str, path: Path, threads: int, **environment: str) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )

    def run(self, n_tiles: int, states: Path | None = None) -> dict[str, Any]:
        """{"seconds", "parts": seconds by part, "compute_bytes"}; the states are written there."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([n_tiles, str(states or "")]), file=self._process.stdin, flush=True)
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.kind} ended with code {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def picture(n_tiles: int) -> np.ndarray:
    """Noise, smooth enough to look like a picture: float32 [n_tiles, 3, 560, 560]."""
    coarse = np.random.default_rng(1).standard_normal((n_tiles, 3, 40, 40)).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(14, 2).repeat(14, 3))


class Ours:
    """The tower by this package."""

    def __init__(self, path: str, threads: int) -> None:
        from pyvllama._runtime import native

        self._mmproj = native.Mmproj(path, n_threads=threads)

    def encode(self, n_tiles: int, states: str) -> dict[str, Any]:
        """As Worker.run."""
        # both canvases have the same index in every checkpoint of this architecture
        index = {4: 6, 1: 1}[n_tiles]
        _, array, timings = self._mmproj.encode(picture(n_tiles), index, want_states=bool(states))
        if states:
            np.save(states, array)
        parts: dict[str, float] = defaultdict(float)
        for kind, ms in timings["parts_ms"].items():
            parts[PARTS.get(kind, "rest")] += ms / 1000
        return {"seconds": timings["tower_ms"] / 1000, "parts": parts, "compute_bytes": timings["compute_bytes"]}


class Torch:
    """The tower by transformers' classes, timed by part with hooks on its modules."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from transformers import MllamaConfig
        from transformers.models.mllama.modeling_mllama import MllamaVisionModel

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = MllamaConfig.from_pretrained(path)
        config.vision_config._attn_implementation = "sdpa"
        torch.set_default_dtype(torch.bfloat16)
        self._torch = torch
        self._config = config.vision_config
        self._model = MllamaVisionModel(config.vision_config).eval()  # as fast with any weights
        self._projector = torch.nn.Linear(config.vision_config.vision_output_dim, config.text_config.hidden_size)
        self._parts: dict[str, float] = defaultdict(float)
        for layers in (self._model.transformer, self._model.global_transformer):
            for layer in layers.layers:
                self._watch(layer, "rest")
                self._watch(layer.self_attn, "attention")
                for module in layer.modules():
                    if isinstance(module, torch.nn.Linear):
                        self._watch(module, "products")
                    elif isinstance(module, torch.nn.LayerNorm):
                        self._watch(module, "norms")
                self._watch(layer.mlp.activation_fn, "gelu")
        self._inside: list[str] = []

    def _watch(self, module: Any, part: str) -> None:
        """Time in it is that part's, but for what modules within it have."""

        def before(*_: Any) -> None:
            self._turn()
            self._inside.append(part)

        def after(*_: Any) -> None:
            self._turn()
            self._inside.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self._parts[self._inside[-1]] += now - self._last
        self._last = now

    def encode(self, n_tiles: int, states: str) -> dict[str, Any]:
        """As Worker.run."""
        torch, config = self._torch, self._config
        assert n_tiles == config.max_num_tiles and not states
        pixels = torch.from_numpy(picture(n_tiles)).to(torch.bfloat16)[None, None]
        ids = torch.tensor([[config.supported_aspect_ratios.index(CANVAS[n_tiles]) + 1]])
        mask = torch.ones((1, 1, n_tiles), dtype=torch.long)
        self._parts.clear()
        with torch.inference_mode():
            start = time.perf_counter()
            self._projector(self._model(pixels, ids, mask).last_hidden_state)
            seconds = time.perf_counter() - start
        parts = {**self._parts, "projector and embeddings": seconds - sum(self._parts.values())}
        return {"seconds": seconds, "parts": parts}


def main() -> None:
    kind, path, threads = sys.argv[1:]
    contestant = {"pyvllama": Ours, "torch": Torch}[kind](path, int(threads))
    for line in sys.stdin:
        print(json.dumps(contestant.encode(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
