#!/usr/bin/env python3
"""Conversion in one pass against two steps: time, peak memory, bytes written.

    tools/bench/convert.py CHECKPOINT WORK_DIR [--threads 2] [--json FILE]

One pass is `pyvllama convert -q q4_k_m`. Two steps are what people do with llama.cpp: a pair in F16 first, then
`llama_model_quantize` on the text model (llama.cpp's own quantizer) and `pyvllama quantize` on the mmproj, which
llama.cpp does not know. The text models must come out alike, and are compared. WORK_DIR needs room for the F16 pair and
two Q4_K_M pairs; what is made there is deleted. The page cache is dropped before each step where that is allowed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from machine import Cost, describe, drop_page_cache, watch

QUANTIZE = """
import ctypes, sys
from pyvllama._runtime import llama_cpp, set_fields
params = llama_cpp.llama_model_quantize_default_params()
set_fields(params, ftype=15, nthread=int(sys.argv[3]))
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work_dir / "bench-convert"
    work.mkdir(parents=True)
    try:
        result = measure(args.checkpoint, work, str(args.threads))
    finally:
        shutil.rmtree(work)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result["machine"]))
    for name, cost in result["costs"].items():
        print(
            f"{name:24} {cost['seconds']:7.0f} s  cpu {cost['cpu_seconds']:6.0f} s  written "
            f"{cost['bytes_written'] / 1e9:6.2f} GB  max rss {cost['max_rss'] / 1e6:6.0f} MB  of its own "
            f"{cost['max_anonymous'] / 1e6:6.0f} MB"
        )
    print("one pass / two steps:", ", ".join(f"{k} {v:.2f}" for k, v in result["ratios"].items()))


def measure(checkpoint: Path, work: Path, threads: str) -> dict[str, object]:
    dropped = []

    def step(*command: str) -> Cost:
        dropped.append(drop_page_cache())
        return watch([sys.executable, *command])

    cli = ("-m", "pyvllama.cli.main")
    one = step(*cli, "convert", str(checkpoint), "-o", str(work / "one"), "-t", threads, "--name", "M")
    f16 = step(
        *cli, "convert", str(checkpoint), "-o", str(work / "f16"), "-t", threads, "--name", "M", "-q", "f16",
        "--mmproj-type", "f16",
    )  # fmt: skip
    (work / "two").mkdir()
    text, mmproj = work / "f16/M-F16.gguf", work / "f16/mmproj-M-F16.gguf"
    step_text = step("-c", QUANTIZE, str(text), str(work / "two/M-Q4_K_M.gguf"), threads)
    text.unlink()
    step_mmproj = step(*cli, "quantize", str(mmproj), "-o", str(work / "two"), "-t", threads)
    two = f16 + step_text + step_mmproj
    return {
        "machine": describe("gguf", "numpy"),
        "page_cache_dropped": all(dropped),
        "checkpoint_bytes": sum(p.stat().st_size for p in checkpoint.glob("*.safetensors")),
        "text_files_equal": compare(work / "one/M-Q4_K_M.gguf", work / "two/M-Q4_K_M.gguf"),
        "costs": {
            "one pass": one.as_dict(),
            "two steps": two.as_dict(),
            "  F16 pair": f16.as_dict(),
            "  llama_model_quantize": step_text.as_dict(),
            "  quantize the mmproj": step_mmproj.as_dict(),
        },
        "ratios": {
            "time": one.seconds / two.seconds,
            "max rss": one.max_rss / two.max_rss,
            "own memory": one.max_anonymous / two.max_anonymous,
            "bytes written": one.bytes_written / two.bytes_written,
        },
    }


def compare(a: Path, b: Path) -> dict[str, int]:
    """How many tensors have the same bytes (F16 in between costs BF16 checkpoints their smallest numbers)."""
    from pyvllama.gguf_file import GGUFFile

    x, y = GGUFFile(a), GGUFFile(b)
    same = sum(np.array_equal(x.raw(name), y.raw(name)) for name in x.tensors)
    return {"same": int(same), "tensors": len(x.tensors)}


if __name__ == "__main__":
    main()
