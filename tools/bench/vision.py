#!/usr/bin/env python3
"""The vision tower on the CPU: ours against PyTorch in bf16, by part, and how far from what the CPU can do at most.

    tools/bench/vision.py CHECKPOINT WORK_DIR [--types q8_0,bf16] [--threads 2] [--rounds 5] [--before] [--json FILE]

CHECKPOINT is of Hugging Face's form; random weights in the real shapes will do. For each type of `--types` its mmproj
is converted into WORK_DIR (kept there, taken again), with the embeddings of padded tiles set to zero, as the real
model has them. PyTorch runs transformers' own MllamaVisionModel (SDPA) and projector in bf16, always on 4 tiles.

Every contestant has a process of its own. They take turns, one picture at a time, and medians are compared. Times are
of the tower and the projector. A checkpoint with fewer layers than the real model's 40 stands for it: the time of a
layer is that of all layers over their number, and "40 layers" is reckoned from it, with the rest as it was.

The states are compared with those of the same weights in F32, by ggml alone (PYVLLAMA_CPU_KERNELS=ggml), whose mmproj
is made too: relative error |a - b| / |b| over the states of a 4-tile picture. `--before` times and compares ggml's form
of every type as well. Needs the extra `reference` and a C++ compiler (for the CPU's peak).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from vision_worker import N_TILES, Worker

REAL_LAYERS = 40
BARS = {4: 0.70, 1: 0.25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--types", default="q8_0,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", action="store_true", help="ggml's form of every type too")
    parser.add_argument("--no-errors", action="store_true", help="do not compare the states")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    types = args.types.split(",")
    files = {t: mmproj(args.checkpoint, args.work_dir, t) for t in dict.fromkeys([*types, "f32"])}
    config = json.loads((args.checkpoint / "config.json").read_text())["vision_config"]
    result: dict[str, Any] = {
        "machine": describe("torch", "transformers"),
        "threads": args.threads,
        "rounds": args.rounds,
        "layers": config["num_hidden_layers"] + config["num_global_layers"],
        "peak_gflops": peak(args.threads),
        "work": {n: work(config, n) for n in (4, 1)},
    }
    contestants = {"torch bf16": Worker("torch", args.checkpoint, args.threads)}
    for t in types:
        contestants[t] = Worker("pyvllama", files[t], args.threads)
        if args.before:
            contestants[f"{t}, ggml"] = Worker("pyvllama", files[t], args.threads, PYVLLAMA_CPU_KERNELS="ggml")
    result["runs"] = {name: summary(runs, result["layers"]) for name, runs in race(contestants, args.rounds).items()}
    result["ratios"] = ratios(result["runs"])
    if not args.no_errors:
        result["errors"] = errors(files, types, args.threads, args.before)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    show(result)


def mmproj(checkpoint: Path, work_dir: Path, kind: str) -> Path:
    """The checkpoint's mmproj in that type, padded tiles without embeddings."""
    from pyvllama.gguf_file import GGUFFile

    target = work_dir / f"bench-vision-{checkpoint.name}-{kind}.gguf"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        command = (sys.executable, "-m", "pyvllama.cli.main", "convert", str(checkpoint), "-o", folder)
        subprocess.run(
            [*command, "--mmproj-only", "--mmproj-type", kind, "--cross-type", "q4_k_m"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (made,) = Path(folder).glob("*.gguf")
        file = GGUFFile(made)
        ratios = json.loads((checkpoint / "config.json").read_text())["vision_config"]["supported_aspect_ratios"]
        with made.open("r+b") as f:
            for name in ("tile_position_embd", "pre_tile_position_embd", "post_tile_position_embd"):
                info = file.tensors[f"v.{name}.weight"]
                n_row = info.n_bytes // (len(ratios) + 1)
                for i, (height, width) in enumerate(ratios, 1):
                    used = n_row * height * width // max(h * w for h, w in ratios)
                    f.seek(info.offset + i * n_row + used)
                    f.write(bytes(n_row - used))
        made.rename(target)
    return target


def peak(threads: int) -> dict[str, float | None]:
    """GFLOP/s of products in registers."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.cpp")
        flags = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-pthread")
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(program)], check=True)
        out = subprocess.run([str(program), str(threads)], check=True, capture_output=True).stdout
    return json.loads(out)


def work(config: dict[str, Any], n_tiles: int) -> dict[str, float]:
    """GFLOP that a picture needs: of products and of attention of a layer, and of the projector.

    A tile has its patches and a class token, padded to a multiple of 8 rows; one padded tile stands for all.
    """
    n, d, n_states = config["hidden_size"], config["intermediate_size"], 4096
    positions = (config["image_size"] // config["patch_size"]) ** 2 + 1
    rows = -(-positions // 8) * 8 * min(n_tiles + 1, config["max_num_tiles"])
    return {
        "rows": rows,
        "products": 2e-9 * rows * (4 * n * n + 2 * n * d),
        "attention": 4e-9 * rows * rows * n,
        "projector": 2e-9 * n_tiles * positions * config["vision_output_dim"] * n_states,
    }


def race(contestants: dict[str, Worker], rounds: int) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Runs of every contestant by number of tiles; one more round first, which does not count."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in contestants}
    for i in range(rounds + 1):
        for name, worker in contestants.items():
            for n_tiles in N_TILES if worker.kind == "pyvllama" else (4,):
                run = worker.run(n_tiles)
                if i > 0:
                    runs[name].setdefault(n_tiles, []).append(run)
    for worker in contestants.values():
        worker.close()
    return runs


def summary(runs: dict[int, list[dict[str, Any]]], n_layers: int) -> dict[int, dict[str, Any]]:
    """Medians, and what a layer and 40 layers take by them."""
    out = {}
    for n_tiles, several in runs.items():
        seconds = [run["seconds"] for run in several]
        kinds = several[0]["parts"]
        parts = {kind: statistics.median(run["parts"].get(kind, 0.0) for run in several) for kind in kinds}
        whole = statistics.median(seconds)
        layer = (whole - parts["projector and embeddings"]) / n_layers
        out[n_tiles] = {
            "seconds": whole,
            "min": min(seconds),
            "max": max(seconds),
            "layer_seconds": layer,
            "seconds_of_40_layers": whole + (REAL_LAYERS - n_layers) * layer,
            "layer_parts": {k: v / n_layers for k, v in parts.items() if k != "projector and embeddings"},
            "projector and embeddings": parts["projector and embeddings"],
            "compute_bytes": several[0].get("compute_bytes"),
        }
    return out


def ratios(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, dict[int, dict[str, float]]]:
    """Ours over PyTorch's 4 tiles."""
    torch = runs["torch bf16"][4]
    keys = ("seconds", "layer_seconds", "seconds_of_40_layers")
    return {
        name: {n: {key: of_tiles[n][key] / torch[key] for key in keys} for n in of_tiles}
        for name, of_tiles in runs.items()
        if name != "torch bf16"
    }


def errors(files: dict[str, Path], types: list[str], threads: int, before: bool) -> dict[str, float]:
    """Relative error of the states of a 4-tile picture against F32 weights in ggml."""
    with tempfile.TemporaryDirectory() as folder:

        def states(kind: str, kernels: str) -> np.ndarray:
            path = Path(folder) / "states.npy"
            worker = Worker("pyvllama", files[kind], threads, PYVLLAMA_CPU_KERNELS=kernels)
            worker.run(4, path)
            worker.close()
            return np.load(path).astype(np.float64)

        want = states("f32", "ggml")
        found = {}
        for kind in dict.fromkeys([*types, "f32"]):
            for kernels in ("", "ggml") if before and kind != "f32" else ("",):
                name = f"{kind}, {kernels}" if kernels else kind
                found[name] = float(np.linalg.norm(states(kind, kernels) - want) / np.linalg.norm(want))
    return found


def show(result: dict[str, Any]) -> None:
    print(json.dumps(result["machine"]))
    gflops = result["peak_gflops"]
    print(f"{result['threads']} threads; peak GFLOP/s in registers: {gflops}; checkpoint of {result['layers']} layers")
    best = gflops["bf16"] or gflops["f32"]
    for n_tiles in (4, 1):
        w = result["work"][n_tiles]
        bound = (w["products"] + w["attention"]) / best
        print(
            f"\n{n_tiles} tile(s): {w['rows']} rows; a layer is {w['products']:.0f} GFLOP of products and "
            f"{w['attention']:.0f} of attention: {bound:.2f} s at the peak"
        )
        print(f"  {'':16} {'tower s':>8} {'min..max':>13} {'a layer':>8} {'of peak':>8} {'40 layers*':>10} "
              f"{'/ torch':>8} {'buffer MB':>9}   a layer by part, ms")  # fmt: skip
        for name, of_tiles in result["runs"].items():
            run = of_tiles.get(n_tiles) or of_tiles[4]
            to_torch = result["ratios"].get(name, {}).get(n_tiles, {}).get("seconds_of_40_layers")
            parts = ", ".join(f"{k} {1000 * v:.0f}" for k, v in sorted(run["layer_parts"].items(), key=lambda x: -x[1]))
            memory = run["compute_bytes"]
            print(
                f"  {name:16} {run['seconds']:8.2f} {run['min']:6.2f}..{run['max']:5.2f} {run['layer_seconds']:8.3f} "
                f"{bound / run['layer_seconds']:8.2f} {run['seconds_of_40_layers']:10.1f} "
                f"{f'{to_torch:.3f}' if to_torch else '':>8} {f'{memory / 1e6:.0f}' if memory else '':>9}   {parts}"
            )
        print(f"  bar: {BARS[n_tiles]:.2f} of PyTorch's 4 tiles")
    print(f"\n* reckoned: the {result['layers']} layers measured stand for {REAL_LAYERS}")
    for name, error in result.get("errors", {}).items():
        print(f"states of 4 tiles, {name}: relative error {error:.1e} against F32 weights in ggml")


if __name__ == "__main__":
    main()
