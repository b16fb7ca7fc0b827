#!/usr/bin/env python3
"""Other programs that run this model or its text half, next to ours: speed, load time, memory, on the same weights.

    tools/bench/peers.py CHECKPOINT GGUF_DIR [--peers ours,transformers] [--mistralrs PYTHON]... [--threads 2]
                         [--words 100] [--tokens 16] [--rounds 2] [--repeats 2] [--no-picture] [--cold] [--json FILE]

CHECKPOINT is of Hugging Face's form (random weights in the real shapes will do), GGUF_DIR holds the pair that was
converted from it. The peers: stock llama.cpp through llama_cpp on the text GGUF; transformers in bf16; mistral.rs with
in-situ quantization to Q4K, and on the text GGUF. `--mistralrs` names the Python of a virtual environment in which it
is installed, one for each version; all others run in this one. What is not installed is skipped, and what fails is
recorded with its own words.

Each peer has a process of its own, one at a time, in another order each round, with the same threads, the same
question (`--words` words: the prompt has some tokens more) and the same number of tokens generated greedily. Load time
is from the start of the process until it can be asked. Peak memory is the largest resident set (VmHWM), pages of mapped
files included. With a picture: one of 2x2 tiles. Files are read into the page cache before each process starts;
with --cold the page cache is dropped instead (needs root).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, drop_page_cache
from peers_worker import PEERS, Job

WORKER = Path(__file__).with_name("peers_worker.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf_dir", type=Path)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"Default: {','.join(PEERS)}")
    parser.add_argument("--mistralrs", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--patience", type=float, default=1800, help="Seconds until a step is given up.")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    peers, skipped = contestants(args.peers, args.mistralrs)
    result: dict[str, Any] = {
        "machine": describe(),
        "checkpoint": args.checkpoint.name,
        "threads": args.threads,
        "tokens": args.tokens,
        "page_cache": "dropped" if args.cold else "warm",
        "skipped": skipped,
        "peers": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            checkpoint=str(args.checkpoint),
            **pair(args.gguf_dir),
            picture="" if args.no_picture else picture(args.checkpoint, Path(folder)),
            threads=args.threads,
            question=" ".join(["word"] * args.words),
            tokens=args.tokens,
            repeats=args.repeats,
            spawned=0.0,
        )
        seen: dict[str, list[dict[str, Any]]] = {label: [] for label in peers}
        for i in range(args.rounds):
            labels = [*peers]
            for label in labels[i % len(labels) :] + labels[: i % len(labels)]:
                if any("error" in run["load"] for run in seen[label]):
                    continue
                print(f"round {i + 1}: {label}", file=sys.stderr, flush=True)
                prepare(job, args.cold)
                seen[label].append(run(*peers[label], job, args.patience))
    result["peers"] = {label: summary(runs) for label, runs in seen.items()}
    result["ratios"] = ratios(result["peers"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    show(result)


def contestants(wanted: str, pythons: list[str]) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Label -> (name in PEERS, Python); and of what is not installed, how to install it."""
    found, skipped = {}, {}
    # not split at every comma: one of the names has one
    for name in (n for n in PEERS if n in re.split(r",(?! )", wanted)):
        _, package, how = PEERS[name]
        candidates = pythons if package == "mistralrs" and pythons else [sys.executable]
        for python in candidates:
            ask = f"import {package}, importlib.metadata as m; print(m.version({package.replace('_', '-')!r}))"
            if package == "llama_cpp":
                ask = ask.replace("'llama-cpp'", "'llama-cpp-python'")
            answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                found[f"{name} {answer.stdout.split()[-1]}"] = (name, python)
            else:
                skipped[name] = f"not installed in {Path(python).name}: {how}"
    return found, skipped


def pair(folder: Path) -> dict[str, str]:
    """The two files, as a Job names them."""
    from pyvllama.resolve import resolve

    found = resolve(folder)
    return {"text": str(found.text), "mmproj": str(found.mmproj)}


def picture(checkpoint: Path, folder: Path) -> str:
    """A PNG of 2x2 tiles: coarse noise."""
    from PIL import Image

    tile = json.loads((checkpoint / "config.json").read_text())["vision_config"]["image_size"]
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    path = folder / "four-tiles.png"
    Image.fromarray(noise).resize((2 * tile, 2 * tile), Image.Resampling.NEAREST).save(path)
    return str(path)


def prepare(job: Job, cold: bool) -> None:
    """The page cache, the same for everybody."""
    if cold:
        if not drop_page_cache():
            raise SystemExit("--cold needs root: /proc/sys/vm/drop_caches cannot be written")
        return
    room = bytearray(16 << 20)
    for path in [job.text, job.mmproj, *Path(job.checkpoint).glob("*.safetensors")]:
        with Path(path).open("rb", buffering=0) as f:
            while f.readinto(room):
                pass


def run(name: str, python: str, job: Job, patience: float) -> dict[str, Any]:
    """Step -> what the process said of it; a step that did not come to its end has an "error"."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"), str(job.threads))
    said: dict[str, Any] = {"load": {}}
    with tempfile.TemporaryFile("w+") as errors:
        sent = json.dumps({**asdict(job), "spawned": time.time()})
        process = subprocess.Popen(
            [python, str(WORKER), name, sent], stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, **threads},
        )  # fmt: skip
        assert process.stdout
        given_up = threading.Event()
        step, begun = "load", time.perf_counter()

        def watch() -> None:
            while process.poll() is None:
                time.sleep(1)
                if time.perf_counter() - begun > patience:
                    given_up.set()
                    process.kill()

        threading.Thread(target=watch, daemon=True).start()
        for line in process.stdout:
            if line.startswith('{"step"'):
                what = json.loads(line)
                step, begun = what.pop("step"), time.perf_counter()
                said[step] = what
                print(f"  {step}: {'...' if 'begins' in what else 'done'}", file=sys.stderr, flush=True)
        code = process.wait()
        if not said[step] or "begins" in said[step]:
            ended = f"the process ended with code {code}"
            said[step] = {"error": f"no answer within {patience:.0f} s" if given_up.is_set() else ended}
        errors.seek(0)
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()) for line in errors]
    loud = [i for i, line in enumerate(lines) if "panicked at" in line or " ERROR " in line]
    if failed := [what for what in said.values() if "error" in what]:
        failed[-1]["stderr"] = [line for i in loud for line in lines[i : i + 2]] or lines[-5:]
    return said


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all rounds and repeats of a peer."""
    if errors := [run["load"] for run in runs if "error" in run["load"]]:
        return {"load": errors[0]}
    loads = [run["load"] for run in runs]
    out: dict[str, Any] = {
        "versions": loads[0]["versions"],
        "load": {
            "seconds": statistics.median(load["seconds"] for load in loads),
            "all_seconds": [load["seconds"] for load in loads],
            "cpu_seconds": statistics.median(load["cpu_seconds"] for load in loads),
            "peak": max(load["peak"] for load in loads),
        },
    }
    for step in [step for step in runs[0] if step != "load"]:
        several = [run[step] for run in runs if step in run]
        if failed := [one for one in several if "error" in one]:
            out[step] = failed[0]
            continue
        every = [one for what in several for one in what["runs"]]
        prompt_s, token_s = (statistics.median(one[key] for one in every) for key in ("prompt_s", "token_s"))
        out[step] = {
            "prompt_n": every[0]["prompt_n"],
            "prompt_s": prompt_s,
            "prompt_per_second": every[0]["prompt_n"] / prompt_s,
            "tokens_per_second": 1 / token_s,
            "image_s": statistics.median(one["image_s"] for one in every) if "image_s" in every[0] else None,
            "seconds": statistics.median(one["seconds"] for one in every),
            "peak": max(what["peak"] for what in several),
            "anonymous": max(what["anonymous"] for what in several),
            "least_cpu_share": min(one["cpu_share"] for one in every),
            "runs": every,
        }
    return out


def ratios(peers: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of speeds ours over theirs, of times and memory ours over theirs as well."""
    us = next((what for label, what in peers.items() if label.startswith("ours")), None)
    found: dict[str, dict[str, float]] = {}
    for label, them in peers.items():
        if us is None or them is us or "error" in them["load"] or "error" in us["load"]:
            continue
        found[label] = {"load seconds": us["load"]["seconds"] / them["load"]["seconds"]}
        for step in ("text", "picture"):
            if "prompt_s" in us.get(step, {}) and "prompt_s" in them.get(step, {}):
                keys = ("prompt_per_second", "tokens_per_second", "peak", "seconds")
                found[label] |= {f"{step}: {key}": us[step][key] / them[step][key] for key in keys}
    return found


def show(result: dict[str, Any]) -> None:
    print(json.dumps(result["machine"]))
    print(f"{result['checkpoint']}, {result['threads']} threads, {result['tokens']} tokens, page cache "
          f"{result['page_cache']}; medians")  # fmt: skip
    print(f"{'':28} {'load s':>7} {'picture s':>9} {'prompt':>6} {'t/s':>7} {'gen t/s':>8} {'all s':>7} {'peak GB':>8}"
          " CPU had")  # fmt: skip
    for label, peer in result["peers"].items():
        print(f"{label:28} {peer['load']['seconds']:7.1f} {'':41} {peer['load']['peak'] / 1e9:8.2f}"
              if "error" not in peer["load"] else f"{label:28} failed: {words(peer['load'])}")  # fmt: skip
        for step, what in peer.items():
            if step in ("versions", "load"):
                continue
            if "error" in what:
                print(f"  {step}: failed: {words(what)}")
                continue
            print(
                f"  {step:26} {'':7} {picture_s(step, what):>9} {what['prompt_n']:6} {what['prompt_per_second']:7.1f} "
                f"{what['tokens_per_second']:8.2f} {what['seconds']:7.2f} {what['peak'] / 1e9:8.2f} "
                f"{what['least_cpu_share']:7.2f}"
            )
    for label, values in result["ratios"].items():
        print(f"ours / {label}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    for name, why in result["skipped"].items():
        print(f"{name}: skipped, {why}")


def picture_s(step: str, what: dict[str, Any]) -> str:
    """Seconds of its encoding, where the peer tells them apart from the prompt's."""
    return "" if step == "text" else "in prompt" if what["image_s"] is None else f"{what['image_s']:.2f}"


def words(failure: dict[str, Any]) -> str:
    """What it said, without the stack."""
    said = [line for line in failure["error"].splitlines() if not re.match(r"\s*(\d+:|at )", line)]
    return " | ".join(line.strip() for line in [*said, *failure.get("stderr", [])] if line.strip())


if __name__ == "__main__":
    main()
