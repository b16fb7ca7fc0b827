#!/usr/bin/env python3
"""Peak memory of a chat with a picture, beside what `pyvllama show --fit` predicts, and its speed inside a limit.

    tools/bench/memory.py MODEL [--mmproj FILE] [--n-ctx 4096] [--kv-type f16] [--cross-kv-type f16] [--tiles 4]
                          [--no-repack] [--words 600] [--pictures 1] [--threads 2] [--tokens 16] [--limit 8G]
                          [--json FILE]

A process of its own loads MODEL (or `pocket`, the bundled model), encodes a picture, reads a prompt that fills a batch
and generates. The prediction is of a full context and one picture: with --words it is filled, with --pictures more
pictures follow in later turns. With --limit it is done a second time inside a memory cgroup without swap (v2 or v1,
needs root), and the speeds are compared; where there is no such cgroup, under a limit of the address space (RLIMIT_AS),
mapped files included, which is harder. The page cache is dropped before each run where that is allowed: pages that
another process has brought into memory would not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import describe, drop_page_cache

CGROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mmproj")
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--cross-kv-type", default="f16")
    parser.add_argument("--repack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiles", type=int, choices=(1, 2, 4), default=4)
    parser.add_argument("--words", type=int, default=600, help="Of the prompt, about a token each.")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--limit", help="Bytes, or with K, M, G: powers of 1024.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(chat(args)))
        return
    result: dict[str, Any] = {"machine": describe(), "model": Path(args.model).name, "predicted": predict(args)}
    result["runs"] = {"free": run()}
    if "failed" not in result["runs"]["free"]:
        result["predicted_over_measured"] = result["predicted"]["total"] / result["runs"]["free"]["at_the_end"]["peak"]
    if args.limit:
        n_bytes = parse_size(args.limit)
        with limited(n_bytes) as (how, enter, read_back):
            inside = run(enter)
            result["runs"][f"{args.limit} {how}"] = {**inside, **read_back()}
        if "failed" not in inside:
            free = result["runs"]["free"]
            result["speed_inside"] = inside["tokens_per_second"] / free["tokens_per_second"]
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    report(result)


def predict(args: argparse.Namespace) -> dict[str, Any]:
    """What `pyvllama show --fit` says."""
    from pyvllama.memory_need import MemorySettings, memory_need, read_sizes
    from pyvllama.resolve import resolve

    pair = resolve(name_of(args.model), args.mmproj)
    need = memory_need(
        read_sizes(pair, repack=args.repack), MemorySettings(args.n_ctx, args.kv_type, args.cross_kv_type)
    )
    return {"total": need.total, "peak": need.peak, "parts": dict(need.parts)}


def name_of(model: str) -> str | None:
    return None if model == "pocket" else model


def chat(args: argparse.Namespace) -> dict[str, Any]:
    """What the process does that is measured."""
    import numpy as np

    import pyvllama

    start = time.perf_counter()
    with pyvllama.load(
        name_of(args.model),
        args.mmproj,
        n_ctx=args.n_ctx,
        kv_type=args.kv_type,
        cross_kv_type=args.cross_kv_type,
        repack=args.repack,
        n_threads=args.threads,
    ) as llm:
        load_s = time.perf_counter() - start
        after_load = memory()
        tile = llm.model.preprocessor.tile_size
        rows, columns = {1: (1, 1), 2: (1, 2), 4: (2, 2)}[args.tiles]
        noise = np.random.default_rng(1)
        words = "word " * max(1, min(args.words, args.n_ctx - 100))
        ends = dict.fromkeys(llm.model.tokenizer.eog, -100)  # goes on to max_tokens
        messages: list[dict[str, Any]] = []
        for text in [words] + ["And this?"] * (args.pictures - 1):
            picture = noise.integers(0, 256, (rows * tile, columns * tile, 3), np.uint8)
            content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            messages.append({"role": "user", "content": content})
            answer = llm.chat(messages, max_tokens=args.tokens, temperature=0, logit_bias=ends)
            messages.append(answer["choices"][0]["message"])
            if text == words:
                timings = answer["timings"]
        return {
            "load_s": load_s,
            "image_s": timings["image_encode_ms"] / 1000,
            "prompt_s": timings["prompt_ms"] / 1000,
            "tokens_per_second": timings["predicted_per_second"],
            "after_load": after_load,
            "at_the_end": memory(),
        }


def memory() -> dict[str, int]:
    """Of this process, in bytes: resident now and at most, and what of it is no file's."""
    keys = {"VmRSS": "resident", "VmHWM": "peak", "RssAnon": "anonymous"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in keys:
            found[keys[name]] = 1024 * int(value.split()[0])
    return found


def run(enter: Callable[[], None] | None = None) -> dict[str, Any]:
    """This program again as a child, its own arguments; what became of it."""
    dropped = drop_page_cache()
    child = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child"], stdout=subprocess.PIPE, preexec_fn=enter, check=False
    )
    if child.returncode != 0:
        return {"failed": child.returncode, "page_cache_dropped": dropped}
    return {**json.loads(child.stdout), "page_cache_dropped": dropped}


@contextlib.contextmanager
def limited(n_bytes: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], dict[str, int]]]]:
    """What kind of limit it is, what a child calls to enter it, what is read from it afterwards."""
    name = f"pyvllama-bench-{os.getpid()}"
    if (CGROUPS / "cgroup.controllers").exists() and os.geteuid() == 0:
        group, limit, swap, peak = CGROUPS / name, "memory.max", ("memory.swap.max", "0"), "memory.peak"
    elif (CGROUPS / "memory" / "memory.limit_in_bytes").exists() and os.geteuid() == 0:
        group, limit, peak = CGROUPS / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        swap = ("memory.swappiness", "0")
    else:
        yield "address space", lambda: resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes)), dict
        return
    group.mkdir()
    try:
        (group / limit).write_text(str(n_bytes))
        with contextlib.suppress(OSError):  # a kernel without swap
            (group / swap[0]).write_text(swap[1])
        yield (
            "cgroup",
            lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
            lambda: {"cgroup_peak": int((group / peak).read_text())} if (group / peak).exists() else {},
        )
    finally:
        group.rmdir()


def parse_size(text: str) -> int:
    """`8G` in bytes."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1].upper(), 1)
    return int(float(text if factor == 1 else text[:-1]) * factor)


def report(result: dict[str, Any]) -> None:
    print(json.dumps(result["machine"]))
    for name, r in result["runs"].items():
        if "failed" in r:
            print(f"{name:12} died: exit code {r['failed']}")
            continue
        end = r["at_the_end"]
        print(
            f"{name:12} peak {end['peak'] / 1e9:.2f} GB, at the end {end['resident'] / 1e9:.2f} GB of which anonymous "
            f"{end['anonymous'] / 1e9:.2f}; load {r['load_s']:.1f} s, picture {r['image_s']:.1f} s, prompt "
            f"{r['prompt_s']:.1f} s, {r['tokens_per_second']:.2f} t/s"
            + (f"; cgroup's peak {r['cgroup_peak'] / 1e9:.2f} GB" if "cgroup_peak" in r else "")
        )
    predicted = result["predicted"]
    print(f"predicted    peak {predicted['total'] / 1e9:.2f} GB, while {predicted['peak']}:")
    for name, n_bytes in predicted["parts"].items():
        print(f"             {name:32} {n_bytes / 1e6:8.1f} MB")
    if "predicted_over_measured" in result:
        print(f"predicted / measured (free): {result['predicted_over_measured']:.3f}")
    if "speed_inside" in result:
        print(f"speed inside the limit / free: {result['speed_inside']:.2f}")


if __name__ == "__main__":
    main()
