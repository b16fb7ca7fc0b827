#!/usr/bin/env python3
"""What a picture costs that was encoded before: in the same process, and from files that another process wrote.

    tools/bench/repeat.py MODEL [--mmproj FILE] [--cross-kv-type f16] [--rounds 5] [--threads 2] [--json FILE]

A process of its own loads MODEL (or `pocket`, the bundled model), encodes a picture of four tiles (its file decoded and
its disk cache written), then the same file again, `--rounds` times; `first` is what `VisionCache.encode` took without
the writing. Others then load MODEL with the same cache directory and ask for the picture: with the page cache of its
file dropped before, so that it comes from the disk, and with the page cache warm.
Times are wall-clock seconds of all that is done for the picture, from a PNG's bytes to its ImageStates; what opening
the PNG alone takes is said beside them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mmproj")
    parser.add_argument("--cross-kv-type", default="f16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(ask(args)))
        return
    result: dict[str, Any] = {"machine": describe("pillow"), "model": Path(args.model).name}
    with tempfile.TemporaryDirectory(prefix="pyvllama-bench-") as folder:
        first = child(folder)
        result |= {"first_s": first["asked_s"][0] - first["written_s"], "written_s": first["written_s"]}
        result["opened_s"] = first["opened_s"]
        result["same_process_s"] = first["asked_s"][1:]
        result["file_bytes"] = sum(path.stat().st_size for path in Path(folder).iterdir())
        result["disk_cold_s"], result["disk_warm_s"] = [], []
        for _ in range(args.rounds):
            for kind in ("cold", "warm"):
                if kind == "cold":
                    result["page_cache_dropped"] = all(map(drop_pages, Path(folder).iterdir()))
                found = child(folder)
                assert found["from_disk"], "the file was not used"
                result[f"disk_{kind}_s"].append(found["asked_s"][0])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    report(result)


def drop_pages(path: Path) -> bool:
    """Forget a file's pages, so that it is read from the disk; whether the system knows how to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def child(folder: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", folder], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """What a process does: the picture again and again."""
    import numpy as np
    from PIL import Image

    import pyvllama
    from pyvllama.image.source import load_image

    with pyvllama.load(
        None if args.model == "pocket" else args.model,
        args.mmproj,
        n_ctx=512,
        cross_kv_type=args.cross_kv_type,
        n_threads=args.threads,
        image_cache_dir=args.child,
    ) as llm:
        size = 2 * llm.model.preprocessor.tile_size
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)).save(file, "PNG")
        data = file.getvalue()
        asked, written, encoded = [], 0.0, []
        for _ in range(1 + args.rounds):
            start = time.perf_counter()
            encoded.append(llm._images.encode(load_image(data)))
            asked.append(time.perf_counter() - start)
        opened = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            load_image(data)
            opened.append(time.perf_counter() - start)
        if not encoded[0].cached:
            start = time.perf_counter()
            llm._images._store.put(llm._images.key(load_image(data)), encoded[0].states)
            written = time.perf_counter() - start
        return {"asked_s": asked, "written_s": written, "from_disk": encoded[0].cached, "opened_s": opened}


def report(result: dict[str, Any]) -> None:
    print(json.dumps(result["machine"]))
    first = result["first_s"]
    print(
        f"first encode {first:.3f} s (file of {result['file_bytes'] / 1e6:.1f} MB written in {result['written_s']:.3f})"
    )
    cold = "page cache dropped" if result["page_cache_dropped"] else "page cache could not be dropped"
    for name, key in (
        ("opening the PNG alone", "opened_s"),
        ("same process", "same_process_s"),
        (f"disk, {cold}", "disk_cold_s"),
        ("disk, page cache warm", "disk_warm_s"),
    ):
        times = sorted(result[key])
        middle = statistics.median(times)
        print(
            f"{name:28} {1000 * middle:8.2f} ms [{1000 * times[0]:.2f}, {1000 * times[-1]:.2f}]  {middle / first:.4f} "
            "of the first"
        )


if __name__ == "__main__":
    main()
