#!/usr/bin/env python3
"""Text generation and prompts with and without a picture, against stock llama.cpp and against what is possible.

    tools/bench/decode.py TEXT.gguf [--mmproj FILE] [--cross-kv-type f16] [--no-repack] [--threads 2] [--rounds 40]
                          [--json FILE]

Stock is llama.cpp through llama_cpp's low-level API: a context of its own on the same loaded weights, without our hook.
Ours is `Context.decode`. In a round, stock comes before and after each of the others, whose order is drawn; a turn is
two tokens or one prompt. A turn is compared with the two of stock beside it, so that a machine whose speed drifts does
little harm; what is printed is the median of these ratios, its standard error, and their quartiles. "stock again" is a
second context of stock: by how much it differs from 1 is the method's own error. Pictures are keys and values drawn at
random: what they hold does not change how long it takes.

A token's bound is the time that stock needs, times the bytes that are read for it with the picture (text weights, cross
attention's weights, keys and values) over those of the text weights: reading more at the rate at which stock reads. A
prompt's bound is stock's time, plus the cross-attention layers' FLOPs at the rate of stock's self-attention layers. (Of
the last of these, llama.cpp computes the feed-forward part only for the rows whose logits are wanted: one.)
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from pyvllama._runtime import llama_cpp, native, set_fields
from pyvllama.context import Context, ContextParams, Row
from pyvllama.generation import generate
from pyvllama.gguf_file import GGUFFile
from pyvllama.loading import load_as
from pyvllama.model import Model
from pyvllama.session import Cell, Session
from pyvllama.types import SamplingParams, Timings

CHUNK = 2  # tokens of a turn
N_PAST = 32
N_PROMPT = 512
TOKENS = [(7919 * i) % 100000 for i in range(N_PROMPT)]


class Stock:
    """llama.cpp as it is."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        c = llama_cpp.llama_context_default_params()
        set_fields(
            c,
            n_ctx=params.n_ctx,
            n_batch=params.n_batch,
            n_ubatch=params.n_ubatch,
            n_threads=params.n_threads,
            n_threads_batch=params.n_threads,
        )
        self.handle = llama_cpp.llama_init_from_model(model.handle, c)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, tokens: list[int], first: int) -> None:
        """Decode tokens from a position on; of the last one come logits."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, first + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        if llama_cpp.llama_decode(self.handle, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.handle)


class Ours:
    """A context with the hook; its rows see a picture, or none."""

    def __init__(self, context: Context, image: Any = None) -> None:
        self._context = context
        self.handle = context.handle
        self._images = () if image is None else (image,)

    def decode(self, tokens: list[int], first: int) -> None:
        """As Stock.decode."""
        n = len(tokens)
        self._context.decode([Row(t, first + i, self._images, logits=i == n - 1) for i, t in enumerate(tokens)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--cross-kv-type", default="f16")
    parser.add_argument("--repack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--prompt-rounds", type=int, default=5, help="0: no prompts, which take minutes.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = load_as(
        lambda model, params, _: measure(model, params, args.rounds, args.prompt_rounds),
        args.text,
        args.mmproj,
        n_ctx=1024,
        n_threads=args.threads,
        cross_kv_type=args.cross_kv_type,
        repack=args.repack,
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    report(result)


def measure(model: Model, params: ContextParams, rounds: int, prompt_rounds: int) -> dict[str, Any]:
    context = Context(model, params)
    n_positions, max_tiles, _ = model.image_shape
    images = {n: noise_image(model, n * n_positions) for n in (1, max_tiles)}
    stock = Stock(model, params)
    runs: dict[str, Stock | Ours] = {"stock again": Stock(model, params), "text only": Ours(context)}
    runs |= {f"{n} tile{'s'[: n > 1]}": Ours(context, image) for n, image in images.items()}
    bandwidth = read_bandwidth(params.n_threads)
    tokens = take_turns(stock, runs, rounds, params.n_threads, generate_some)
    prompted = {name: run for name, run in runs.items() if name != "stock again" and prompt_rounds}
    none: dict[str, Any] = {"pairs": {}, "cpu": []}
    prompts = take_turns(stock, prompted, prompt_rounds, params.n_threads, read_prompt) if prompted else none
    stock_prompts = [s for s, _ in prompts["pairs"].get("text only", [])]
    sizes = bytes_of_a_token(model)
    rows: dict[str, Any] = {}
    for name, pairs in tokens["pairs"].items():
        n_tiles = int(name.split()[0]) if name[0].isdigit() else 0
        extra = sizes["cross"] + images[n_tiles].n_bytes if n_tiles else 0
        ratios = [s * (1 + extra / sizes["text"]) / t for s, t in pairs]
        second = statistics.median(t for _, t in pairs) / CHUNK
        rows[name] = {
            "tokens_per_second": 1 / second,
            "read_gb_per_second": (sizes["text"] + extra) / second / 1e9,
            "of_bound": spread(ratios),
            "seconds": pairs,
        }
        if name in prompted:
            flops = prompt_flops(model, n_tiles)
            prompt = statistics.median(t for _, t in prompts["pairs"][name])
            rows[name] |= {"prompt_seconds": prompt, "prompt_tokens_per_second": N_PROMPT / prompt}
            if n_tiles:
                shares = [(t - s) / (s * flops["cross"] / flops["self"]) for s, t in prompts["pairs"][name]]
                rows[name]["cross_over_flop_share"] = spread(shares)
            else:
                rows[name]["prompt_of_stock"] = spread([s / t for s, t in prompts["pairs"][name]])
    python = python_share(Session(context), images[max_tiles])
    return {
        "machine": describe("numpy"),
        "text": model.text_path.name,
        "mmproj": model.mmproj_path.name,
        "cross_kv_type": model.cross_kv_type,
        "repack": model.repack,
        "threads": params.n_threads,
        "bytes": {**sizes, **{f"kv of {n} tiles": image.n_bytes for n, image in images.items()}},
        "bandwidth_gb_per_second": bandwidth,
        "cpu_share": {"tokens": tokens["cpu"], "prompts": prompts["cpu"]},
        "stock_tokens_per_second": CHUNK / statistics.median(s for s, _ in tokens["pairs"]["text only"]),
        "stock_prompt_tokens_per_second": N_PROMPT / statistics.median(stock_prompts) if stock_prompts else None,
        "rows": rows,
        "python": python,
    }


def noise_image(model: Model, n_tokens: int) -> Any:
    """ImageStates of random numbers, in the model's type."""
    heads, width = int(model.hparams["text_n_head_kv"]), model.n_embd // int(model.hparams["text_n_head"])
    noise = np.random.default_rng(0).standard_normal((heads * width * n_tokens,), np.float32)
    parts = {
        kind: native.quantize(noise.reshape(-1, native.type_size(kind)[0]), kind).reshape(-1)
        for kind in set(model.mmproj.part_types)
    }
    return model.mmproj.restore(n_tokens, [parts[kind] for kind in model.mmproj.part_types])


def bytes_of_a_token(model: Model) -> dict[str, int]:
    """What is read for one token, of the text model and of the cross-attention layers."""
    text, mmproj = GGUFFile(model.text_path).tensors, GGUFFile(model.mmproj_path).tensors
    tied = "output.weight" not in text
    n_text = sum(t.n_bytes for name, t in text.items() if name != "token_embd.weight" or tied)
    n_cross = sum(
        t.n_bytes for name, t in mmproj.items()
        if name.startswith("xattn.") and not name.endswith(("attn_k.weight", "attn_v.weight"))
    )  # fmt: skip
    return {"text": n_text, "cross": n_cross}


def prompt_flops(model: Model, n_tiles: int) -> dict[str, float]:
    """Of N_PROMPT tokens: all self-attention layers (keys: half of the prompt), all cross-attention layers.

    The feed-forward part of the last self-attention layer: of one token.
    """
    text, mmproj = GGUFFile(model.text_path).tensors, GGUFFile(model.mmproj_path).tensors
    width, n_positions = model.n_embd, model.image_shape[0]
    n_self, n_cross = int(model.hparams["text_n_layer_self"]), len(model.hparams["cross_attention_layers"])
    weights = [
        int(np.prod(t.shape)) * (1 if name.startswith(f"blk.{n_self - 1}.ffn_") else N_PROMPT)
        for name, t in text.items() if name.startswith("blk.")
    ]  # fmt: skip
    cross = [
        int(np.prod(t.shape)) for name, t in mmproj.items()
        if name.startswith("xattn.") and not name.endswith(("attn_k.weight", "attn_v.weight"))
    ]  # fmt: skip
    return {
        "self": 2 * sum(weights) + N_PROMPT * n_self * 4 * width * N_PROMPT / 2,
        "cross": N_PROMPT * (2 * sum(cross) + n_cross * 4 * width * n_tiles * n_positions) if n_tiles else 0.0,
    }


def generate_some(run: Stock | Ours) -> Callable[[], None]:
    if llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(run.handle), 0) < N_PAST - 1:
        run.decode(TOKENS[:N_PAST], 0)
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(run.handle), 0, N_PAST, -1)
    run.decode(TOKENS[:1], N_PAST)  # what it needs is in the caches, its graph is built

    def go() -> None:
        for i in range(CHUNK):
            run.decode(TOKENS[i : i + 1], N_PAST + 1 + i)

    return go


def read_prompt(run: Stock | Ours) -> Callable[[], None]:
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(run.handle), 0, 0, -1)
    return lambda: run.decode(TOKENS, 0)


def take_turns(
    stock: Stock,
    others: dict[str, Stock | Ours],
    rounds: int,
    n_threads: int,
    prepare: Callable[[Stock | Ours], Callable[[], None]],
) -> dict[str, Any]:
    """By name and round the seconds of stock's two turns beside it (their mean) and its own; and the CPU time we had.

    CPU time: the least share in a turn of what we asked for. A round in which another program had the processor is
    measured again, up to twice as many rounds.
    """
    draw = random.Random(0)
    kept: list[tuple[float, dict[str, tuple[float, float]]]] = []
    for i in range(1 + 2 * rounds):
        if sum(cpu > 0.95 for cpu, _ in kept) >= rounds:
            break
        order = draw.sample(list(others), len(others))
        turns = [stock, *(run for name in order for run in (others[name], stock))]
        seconds, cpu = [], 1.0
        for run in turns:
            go = prepare(run)
            c0, t0 = time.process_time(), time.perf_counter()
            go()
            seconds.append(time.perf_counter() - t0)
            cpu = min(cpu, (time.process_time() - c0) / seconds[-1] / n_threads)
        pairs = {name: ((seconds[2 * j] + seconds[2 * j + 2]) / 2, seconds[2 * j + 1]) for j, name in enumerate(order)}
        if i:  # the first one warms up
            kept.append((cpu, pairs))
    kept.sort(key=lambda one: -one[0])
    del kept[rounds:]
    return {"pairs": {name: [pairs[name] for _, pairs in kept] for name in others}, "cpu": [cpu for cpu, _ in kept]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, its standard error (as of normal values with these quartiles), quartiles."""
    low, middle, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": middle, "error": 1.2533 * (high - low) / 1.349 / len(values) ** 0.5, "low": low, "high": high}


def read_bandwidth(n_threads: int, n_bytes: int = 1 << 30) -> float:
    """GB/s that so many threads read, the best of five."""
    parts = np.array_split(np.ones(n_bytes // 4, np.int32), n_threads)
    best = 0.0
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda part: int(part.max()), parts))
            best = max(best, n_bytes / (time.perf_counter() - start) / 1e9)
    return best


def python_share(session: Session, image: Any, n: int = 24) -> dict[str, float]:
    """Of a token of `generate`, what is neither llama_decode nor llama.cpp's sampling, in ms and as a share."""
    in_c = 0.0

    def timed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal in_c
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                in_c += time.perf_counter() - start

        return call

    context = session.context
    session.prefill([Cell(context.model.image_token, image), *(Cell(t) for t in TOKENS[:N_PAST])])
    names = ("llama_decode", "llama_sampler_sample")
    saved = {name: getattr(llama_cpp, name) for name in names}
    barred = tuple((token, float("-inf")) for token in context.model.tokenizer.eog)
    params = SamplingParams(max_tokens=n, temperature=0.0, logit_bias=barred)
    shares, python = [], []
    try:
        for name in names:
            setattr(llama_cpp, name, timed(saved[name]))
        tokens = generate(session, params, Timings())
        next(tokens)
        while True:
            in_c, start = 0.0, time.perf_counter()
            if next(tokens, None) is None:
                break
            whole = time.perf_counter() - start
            shares.append((whole - in_c) / whole)
            python.append(1000 * (whole - in_c))
    finally:
        for name in names:
            setattr(llama_cpp, name, saved[name])
    return {"share": statistics.median(shares), "ms": statistics.median(python)}


def report(r: dict[str, Any]) -> None:
    print(json.dumps(r["machine"]))
    sizes = ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in r["bytes"].items())
    way = f"picture in {r['cross_kv_type']}, {r['threads']} threads" + ("" if r["repack"] else ", --no-repack")
    print(f"{r['text']} + {r['mmproj']}, {way}; a token reads: {sizes}")
    print(f"memory read by {r['threads']} threads: {r['bandwidth_gb_per_second']:.1f} GB/s")
    stock = r["stock_tokens_per_second"]
    print(
        f"{'stock':11} {stock:6.2f} t/s ({stock * r['bytes']['text'] / 1e9:5.1f} GB/s)"
        + (f"   pp{N_PROMPT} {prompt:6.1f} t/s" if (prompt := r["stock_prompt_tokens_per_second"]) else "")
    )
    for name, row in r["rows"].items():
        line = f"{name:11} {row['tokens_per_second']:6.2f} t/s ({row['read_gb_per_second']:5.1f} GB/s)"
        line += f"  of the bound {shown(row['of_bound'])}"
        if "prompt_seconds" in row:
            line += f"  pp{N_PROMPT} {row['prompt_tokens_per_second']:6.1f} t/s"
        if "prompt_of_stock" in row:
            line += f", of stock {shown(row['prompt_of_stock'])}"
        if "cross_over_flop_share" in row:
            line += f"  cross attention / its FLOP share {shown(row['cross_over_flop_share'])}"
        print(line)
    python = r["python"]
    print(f"Python's share of a token: {100 * python['share']:.2f} % ({python['ms']:.3f} ms)")
    worst = {name: min(shares) for name, shares in r["cpu_share"].items() if shares}
    print("share of the CPU time asked for, worst round: " + ", ".join(f"{k} {v:.2f}" for k, v in worst.items()))


def shown(s: dict[str, float]) -> str:
    return f"{s['median']:.3f} ± {s['error']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"


if __name__ == "__main__":
    main()
