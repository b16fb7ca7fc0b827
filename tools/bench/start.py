#!/usr/bin/env python3
"""From the start of the program to the first token, with warm files: how long, and where the time goes.

    tools/bench/start.py MODEL [--mmproj FILE] [--image FILE] [--no-repack] [--threads 2] [--rounds 5] [--json FILE]

Two kinds of processes take turns: `pyvllama run MODEL "Hi" --json` for one token, timed from its start until the answer
is there, less the picture's and the prompt's time as it says itself; and a Python program that does the same through
`pyvllama.load`, with a clock at each part. A third one asks llama.cpp alone for the text model: its vocabulary only;
all of it without copying weights into the layout of its CPU kernels; and as it comes. Medians; the files are read into
the page cache before. The bar: 3 s beyond picture and prompt.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

BAR = 3.0
QUESTION = "Hi"
# functions that are looked up by these names while a model is loaded: (module, name) -> what they do
PARTS = {
    ("loading", "resolve"): "finding the files",
    ("model", "GGUFFile"): "the files' headers",
    ("model", "check_text"): "checks",
    ("model", "check_pair"): "checks",
    ("model", "pairing_hash"): "checks",
    ("model", "load_text"): "text model (llama.cpp)",
    ("model", "pair_template"): "chat template, special tokens",
    ("llm", "Context"): "context",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mmproj")
    parser.add_argument("--image")
    parser.add_argument("--repack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["ours", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(by_part(args) if args.child == "ours" else llama_alone(args.model)))
        return

    from pyvllama.resolve import resolve

    pair = resolve(args.model, args.mmproj)
    runs: list[dict[str, float]] = []
    parts: list[dict[str, float]] = []
    alone: list[dict[str, float]] = []
    for i in range(args.rounds + 1):
        for path in (pair.text, pair.mmproj):
            warm(path)
        several = whole(args), child(args, "ours", args.model), child(args, "llama.cpp", str(pair.text))
        if i:  # the first ones bring Python's own files into memory
            for kept, one in zip((runs, parts, alone), several, strict=True):
                kept.append(one)
    result = {
        "machine": describe(),
        "model": pair.text.name,
        "mmproj": pair.mmproj.name,
        "threads": args.threads,
        "repack": args.repack,
        "run": medians(runs),
        "all_runs": [run["beyond"] for run in runs],
        "parts": medians(parts),
        "llama.cpp alone": medians(alone),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    report(result)


def warm(path: Path) -> None:
    """Bring a file into the page cache."""
    room = bytearray(16 << 20)
    with path.open("rb", buffering=0) as f:
        while f.readinto(room):
            pass


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each value."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def whole(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of `pyvllama run`: until the answer is there, of these picture and prompt, and what is left."""
    command = [sys.executable, "-m", "pyvllama.cli.main", "run", args.model, QUESTION, "--json"]
    command += ["--max-tokens", "1", "--temperature", "0", "--threads", str(args.threads)]
    command += [*(("--mmproj", args.mmproj) if args.mmproj else ()), *(("-i", args.image) if args.image else ())]
    command += [] if args.repack else ["--no-repack"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    answer = process.stdout.readline()
    seconds = time.perf_counter() - start
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    timings = json.loads(answer)["timings"]
    work = (timings["image_encode_ms"] + timings["prompt_ms"]) / 1000
    return {"until the first token": seconds, "picture and prompt": work, "beyond": seconds - work}


def child(args: argparse.Namespace, kind: str, model: str) -> dict[str, float]:
    """This program again; what it says."""
    own = ["--mmproj", args.mmproj] if args.mmproj else []
    own += ["--image", args.image] if args.image else []
    own += [] if args.repack else ["--no-repack"]
    command = [sys.executable, __file__, model, *own, "--threads", str(args.threads), "--child", kind]
    done = subprocess.run(
        [*command, "--spawned", str(time.time())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return json.loads(done.stdout)


def by_part(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part, in a process that has just started."""
    found: dict[str, float] = defaultdict(float)
    found["Python's start"] = time.time() - args.spawned
    mark = time.perf_counter()
    import importlib

    import pyvllama
    from pyvllama._runtime import native

    found["imports"] = time.perf_counter() - mark

    def clocked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*a: Any, **k: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*a, **k)
            finally:
                found[part] += time.perf_counter() - start

        return call

    for (module, name), part in PARTS.items():
        where = importlib.import_module(f"pyvllama.{module}")
        setattr(where, name, clocked(getattr(where, name), part))
    native.Mmproj = clocked(native.Mmproj, "mmproj")
    mark = time.perf_counter()
    llm = pyvllama.load(args.model, args.mmproj, n_threads=args.threads, repack=args.repack)
    found["rest of loading"] = time.perf_counter() - mark - sum(found[part] for part in {*PARTS.values(), "mmproj"})
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": args.image}}] if args.image else []
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    mark = time.perf_counter()
    timings = llm.chat(messages, max_tokens=1, temperature=0)["timings"]
    answer = time.perf_counter() - mark
    found["the answer's beginning, beyond picture and prompt"] = (
        answer - (timings["image_encode_ms"] + timings["prompt_ms"]) / 1000
    )
    return found


def llama_alone(path: str) -> dict[str, float]:
    """Seconds that llama.cpp takes to load the text file, in three ways."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    found = {}
    for way, vocab_only, repack in (
        ("vocabulary only", True, True),
        ("without the CPU's layout", False, False),
        ("as it comes", False, True),
    ):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only, params.use_extra_bufts = 0, vocab_only, repack
        start = time.perf_counter()
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        found[way] = time.perf_counter() - start
        llama_cpp.llama_model_free(model)
    return found


def report(r: dict[str, Any]) -> None:
    print(json.dumps(r["machine"]))
    way = f"{r['threads']} threads, files in memory" + ("" if r["repack"] else ", --no-repack")
    print(f"{r['model']} + {r['mmproj']}, {way}")
    run, beyond = r["run"], r["all_runs"]
    print(
        f"`run`: first token after {run['until the first token']:.2f} s, {run['picture and prompt']:.2f} s of it "
        f"picture and prompt; beyond: {run['beyond']:.2f} s [{min(beyond):.2f}, {max(beyond):.2f}], bar {BAR:.0f} s"
    )
    print("the same by pyvllama.load, by part:")
    for part, seconds in sorted(r["parts"].items(), key=lambda item: -item[1]):
        print(f"  {1000 * seconds:8.0f} ms  {part}")
    print("the text model by llama.cpp alone: "
          + ", ".join(f"{way} {1000 * s:.0f} ms" for way, s in r["llama.cpp alone"].items()))  # fmt: skip


if __name__ == "__main__":
    main()
