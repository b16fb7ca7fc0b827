#!/usr/bin/env python3
"""What a GPU does: is it right, and how far is it from what is possible? One command for anyone who has one.

    tools/bench/gpu.py TEXT.gguf [--mmproj FILE] [-ngl -1] [--no-mmproj-offload] [--rounds 15] [--json FILE]

llama-cpp-python must be built for the GPU, as README tells; `--backend FILE` loads a device from a library instead, as
ggml builds them with GGML_BACKEND_DL.

- Parity: states of pictures and logits of a prompt with a picture, of the device and of the CPU on this machine.
- Tokens and prompts without and with a picture, against stock llama.cpp on the same loaded weights: see decode.py.
- Encoding a picture, against transformers' own tower with its mask in PyTorch (bf16, SDPA) on the same GPU, in the
  mmproj's shapes; where PyTorch finds none, that is said and left out.

All take turns, and medians are compared. Pictures are noise: what they show does not change how long it takes.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from decode import (
    CHUNK,
    N_PROMPT,
    TOKENS,
    Ours,
    Stock,
    bytes_of_a_token,
    generate_some,
    noise_image,
    prompt_flops,
    read_prompt,
)
from machine import describe

from pyvllama._runtime import native
from pyvllama.context import Context, ContextParams, Row
from pyvllama.loading import load_as
from pyvllama.model import Model

CANVAS = {1: 1, 2: 2, 4: 6}  # tiles: index of a canvas of all of them, where 4 is the most
BARS = {
    "text only of stock": 0.99,
    "4 tiles of the bound": 0.95,
    "prompt over its share": 1.15,
    "encode over PyTorch": 1.3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1)
    parser.add_argument("--mmproj-offload", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cross-kv-type", default="f16")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", type=Path, help="a library with a device of ggml's (Linux)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.backend:
        load_backend(args.backend)
    if not native.offload_devices():
        raise SystemExit(
            f"llama.cpp finds no GPU here, only {', '.join(native.device_names())}: build llama-cpp-python for yours "
            "(README: GPU), or look at the driver"
        )
    options = {"n_ctx": 1024, "n_threads": args.threads, "cross_kv_type": args.cross_kv_type}
    on_cpu = load_as(lambda model, params, _: answers(model, params), args.text, args.mmproj, **options)
    result = load_as(
        lambda model, params, _: measure(model, params, on_cpu, args.rounds),
        args.text,
        args.mmproj,
        n_gpu_layers=args.gpu_layers,
        mmproj_offload=args.mmproj_offload,
        **options,
    )
    result["gpu_layers"] = args.gpu_layers
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    report(result)


def load_backend(path: Path) -> None:
    ggml = ctypes.CDLL("libggml.so.0")  # by its name alone: that which is loaded, not a copy of it
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    if not ggml.ggml_backend_load(os.fsencode(path.resolve())):
        raise SystemExit(f"ggml does not load {path}")


def pixels(model: Model, n_tiles: int) -> np.ndarray:
    """Noise, smooth enough to look like a picture: float32 [n_tiles, 3, size, size]."""
    size, patch = model.hparams["image_size"], model.hparams["patch_size"]
    n = size // patch
    coarse = np.random.default_rng(1).standard_normal((n_tiles, 3, n, n)).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(patch, 2).repeat(patch, 3))


def answers(model: Model, params: ContextParams) -> dict[str, Any]:
    """States of pictures of 1 and 4 tiles, and logits of rows that see the larger one."""
    context = Context(model, params)
    images, states = {}, {}
    for n_tiles in (1, 4):
        images[n_tiles], states[n_tiles], _ = model.mmproj.encode(
            pixels(model, n_tiles), CANVAS[n_tiles], want_states=True
        )
    n_vocab = int(model.hparams["text_n_vocab"])
    TOKENS[:] = [t % (n_vocab // 2) for t in TOKENS]  # a small model has not so many
    tokens = [model.image_token, *TOKENS[:48]]
    rows = [Row(t, i, (images[4],), logits=True) for i, t in enumerate(tokens)]
    first = context.decode(rows[:33], collect=True)  # a prompt, then token by token
    rest = [context.decode([row], collect=True) for row in rows[33:]]
    logits = np.concatenate([first, *rest])[:, :n_vocab]
    context.close()
    return {"states": states, "logits": logits}


def parity(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """Relative errors |a - b| / |b|, and the share of rows with the same best token."""

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))

    same = got["logits"].argmax(1) == want["logits"].argmax(1)
    return {
        **{f"states of {n} tile{'s'[: n > 1]}": error(got["states"][n], want["states"][n]) for n in want["states"]},
        "logits": error(got["logits"], want["logits"]),
        "same best token": float(same.mean()),
    }


def measure(model: Model, params: ContextParams, on_cpu: dict[str, Any], rounds: int) -> dict[str, Any]:
    found = parity(answers(model, params), on_cpu)
    n_positions, max_tiles, _ = model.image_shape
    image = noise_image(model, max_tiles * n_positions)
    context = Context(model, params)
    runs: dict[str, Stock | Ours] = {
        "stock": Stock(model, params), "text only": Ours(context), "picture": Ours(context, image)
    }  # fmt: skip
    tokens = take_turns({name: lambda run=run: generate_some(run) for name, run in runs.items()}, rounds)
    prompts = take_turns({name: lambda run=run: read_prompt(run) for name, run in runs.items()}, rounds)
    sizes, flops = bytes_of_a_token(model), prompt_flops(model, max_tiles)
    more = 1 + (sizes["cross"] + image.n_bytes) / sizes["text"]
    extra = [a - b for a, b in zip(prompts["picture"], prompts["stock"], strict=True)]
    share = flops["cross"] / flops["self"] * statistics.median(prompts["stock"])
    pictures = {n: pixels(model, n) for n in (4, 1)}
    encoders: dict[str, Callable[[], Callable[[], None]]] = {
        f"ours, {n} tile{'s'[: n > 1]}": lambda n=n: lambda: model.mmproj.encode(pictures[n], CANVAS[n])
        for n in pictures
    }
    torch_encode = torch_tower(model)
    if torch_encode:
        encoders["PyTorch, 4 tiles"] = lambda: torch_encode
    encoding = take_turns(encoders, max(3, rounds // 3))
    bars: dict[str, float | None] = {
        "text only of stock": ratio(tokens["stock"], tokens["text only"]),
        "4 tiles of the bound": ratio(tokens["stock"], tokens["picture"]) * more,
        "prompt over its share": statistics.median(extra) / share,
        "encode over PyTorch": ratio(encoding["ours, 4 tiles"], encoding["PyTorch, 4 tiles"]) if torch_encode else None,
    }
    return {
        "machine": describe("numpy", *(["torch", "transformers"] if torch_encode else [])),
        "devices": native.device_names(),
        "text": model.text_path.name,
        "mmproj": model.mmproj_path.name,
        "threads": params.n_threads,
        "tower": model.mmproj.device,
        "text_layers": list(model.placement.layers),
        "cross_layers": model.mmproj.cross_devices,
        "rows_that_travelled": context.hook_stats["n_copies"],
        "parity": found,
        "token_ms": {name: 1000 * statistics.median(t) / CHUNK for name, t in tokens.items()},
        "prompt_ms": {name: 1000 * statistics.median(t) for name, t in prompts.items()},
        "encode_ms": {name: 1000 * statistics.median(t) for name, t in encoding.items()},
        "bars": bars,
        "bytes": {**sizes, "picture": image.n_bytes},
        "seconds": {"tokens": tokens, "prompts": prompts, "encoding": encoding},
    }


def ratio(a: list[float], b: list[float]) -> float:
    """Median over the rounds: a round's own rival is the best witness of how fast the machine was."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def take_turns(prepare: dict[str, Callable[[], Callable[[], None]]], rounds: int) -> dict[str, list[float]]:
    """Seconds by name and round. Two rounds more come first: CUDA records its graphs in the second."""
    seconds: dict[str, list[float]] = {name: [] for name in prepare}
    for i in range(rounds + 2):
        for name, make in prepare.items():
            go = make()
            start = time.perf_counter()
            go()
            if i > 1:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def torch_tower(model: Model, device: str = "cuda") -> Callable[[], None] | None:
    """Encodes a picture of 4 tiles by transformers' classes on PyTorch's GPU; None where there is none."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    import torch
    from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    if device == "cuda" and not torch.cuda.is_available():
        return None
    v = {k.removeprefix("clip.").split(".", 1)[1]: x for k, x in model.mmproj_metadata.items() if k.count(".") > 1}
    flat = v["supported_aspect_ratios"]
    ratios = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
    config = MllamaVisionConfig(
        hidden_size=v["embedding_length"],
        intermediate_size=v["feed_forward_length"],
        attention_heads=v["attention.head_count"],
        num_hidden_layers=model.hparams["n_layer_local"],
        num_global_layers=model.hparams["n_layer_global"],
        image_size=model.hparams["image_size"],
        patch_size=model.hparams["patch_size"],
        max_num_tiles=4,
        vision_output_dim=v["embedding_length"] * (1 + len(v["intermediate_layers_indices"])),
        intermediate_layers_indices=list(v["intermediate_layers_indices"]),
        supported_aspect_ratios=ratios,
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            tower = MllamaVisionModel(config).eval()  # as fast with any weights
            projector = torch.nn.Linear(config.vision_output_dim, model.n_embd)
    finally:
        torch.set_default_dtype(before)
    picture = pixels(model, 4)

    @torch.inference_mode()
    def encode() -> None:
        values = torch.from_numpy(picture).to(device, torch.bfloat16)[None, None]
        ids = torch.tensor([[CANVAS[4]]], device=device)
        mask = torch.ones((1, 1, 4), dtype=torch.long, device=device)
        projector(tower(values, ids, mask).last_hidden_state)
        if device == "cuda":
            torch.cuda.synchronize()

    return encode


def report(r: dict[str, Any]) -> None:
    print(json.dumps(r["machine"]))
    print(f"{r['text']} + {r['mmproj']}, -ngl {r['gpu_layers']}; devices: {', '.join(r['devices'])}")
    layers = f"cross-attention layers on {' '.join(r['cross_layers'])}, text layers on {' '.join(r['text_layers'])}"
    print(f"tower on {r['tower']}, {layers}; {r['rows_that_travelled']} times rows travelled to another device")
    print("against the CPU: " + ", ".join(f"{name} {x:.2g}" for name, x in r["parity"].items()))
    print("ms a token: " + ", ".join(f"{name} {ms:.3f}" for name, ms in r["token_ms"].items()))
    print(f"ms for {N_PROMPT} tokens: " + ", ".join(f"{name} {ms:.1f}" for name, ms in r["prompt_ms"].items()))
    print("ms to encode a picture: " + ", ".join(f"{name} {ms:.0f}" for name, ms in r["encode_ms"].items()))
    for name, value in r["bars"].items():
        at_most = " over " in name
        if value is None:
            print(f"{name}: PyTorch finds no GPU here (it needs the extra `reference` and a CUDA build)")
        else:
            reached = value <= BARS[name] if at_most else value >= BARS[name]
            print(f"{name}: {value:.3f}, bar {'<=' if at_most else '>='} {BARS[name]}: {'yes' if reached else 'NO'}")


if __name__ == "__main__":
    main()
