#!/usr/bin/env python3
"""What an importance matrix is worth: divergence from BF16 with and without it, on held-out chats of the pocket model.

    tools/bench/imatrix.py [--calibration 120] [--held-out 200] [--types q4_k_m q3_k_s ...] [--json FILE]

Draws new chats with the pocket model's own generator (needs the DejaVu fonts), one set to calibrate with and another
to judge by. Types that cannot do without a matrix are compared with a matrix of ones. Beside the median it prints the
geometric mean of the token divergences with / without, paired token by token, its interval clustered by chat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import describe

import pyvllama
from pyvllama.chats_file import read_chats
from pyvllama.conversion.imatrix_file import ColumnSums, ImportanceMatrix
from pyvllama.divergence import TokenFigures, compare, concatenate, summarize
from pyvllama.errors import ConfigError
from pyvllama.transcript_reader import TranscriptReader
from pyvllama.transcripts import Transcript
from pyvllama.types import Pair

TOOLS = Path(__file__).resolve().parent.parent
POCKET = TOOLS.parent / "tests" / "data" / "pocket-vllama"
OPTIONS = {"n_ctx": 2048, "n_batch": 256, "n_threads": 1, "n_gpu_layers": 0}
TYPES = ("q4_k_m", "q3_k_s", "q2_k", "pure q2_k", "iq3_xxs", "iq2_xxs")
PURE = {"pure q2_k": ("q2_k", [r"^(token_embd|output|blk|xattn)\b=q2_k"])}
FLOOR = 1e-12  # of a divergence: rounding makes smaller ones, and some below 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=120)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.calibration, args.held_out, args.types)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))


def measure(work: Path, n_calibration: int, n_held_out: int, types: Sequence[str]) -> list[dict[str, object]]:
    for name, n, seed in (("calibration", n_calibration, 1), ("held-out", n_held_out, 2)):
        subprocess.run([sys.executable, TOOLS / "make_pocket_chats.py", work / name, str(n), str(seed)], check=True)
    reference = pyvllama.convert(POCKET, work / "bf16", text_type="bf16", mmproj_type="bf16")
    matrices = pyvllama.collect_imatrix(reference.text, [work / "calibration" / "chats.jsonl"], work / "imatrix")
    measured = [matrices.text, matrices.mmproj]
    ones = [_ones(path, work / f"ones-{path.name}") for path in measured]
    with TranscriptReader(reference, **OPTIONS) as reader:
        chats = [c for c in reader.transcripts(read_chats([work / "held-out" / "chats.jsonl"]), 512) if c.answers]
        expected = [np.concatenate(list(reader.answer_logits(chat))) for chat in chats]
    rows = []
    for name in types:
        made = [convert(work / f"{name}-{kind}", name, matrix) for kind, matrix in (("no", []), ("with", measured))]
        without = made[0] or convert(work / f"{name}-ones", name, ones)
        assert without is not None
        assert made[1] is not None
        before, after = (_divergences(pair, chats, expected) for pair in (without, made[1]))
        ratio, low, high = paired_ratio(before, after)
        row = {
            "type": name,
            "without": "none" if made[0] else "ones",
            "median_without": summarize(concatenate(before)).kld_median,
            "median_with": summarize(concatenate(after)).kld_median,
            "mean_without": summarize(concatenate(before)).kld_mean,
            "mean_with": summarize(concatenate(after)).kld_mean,
            "ratio": ratio,
            "interval": [low, high],
        }
        print(
            f"{name:10} median {row['median_without']:.2e} -> {row['median_with']:.2e}  mean "
            f"{row['mean_without']:.5f} -> {row['mean_with']:.5f}  geometric mean x {ratio:.2f} "
            f"[{low:.2f}, {high:.2f}]",
            flush=True,
        )
        rows.append(row)
    return rows


def convert(where: Path, name: str, matrix: list[Path]) -> Pair | None:
    """A pair of that type, or None where it needs a matrix and there is none."""
    text_type, overrides = PURE.get(name, (name, []))
    try:
        return pyvllama.convert(POCKET, where, text_type=text_type, tensor_types=overrides, imatrix=matrix)
    except ConfigError:
        if matrix:
            raise
        return None


def _ones(path: Path, target: Path) -> Path:
    matrix = ImportanceMatrix.read(path)
    ImportanceMatrix({name: ColumnSums(np.ones_like(e.sums), 1) for name, e in matrix.entries.items()}).write(target)
    return target


def _divergences(pair: Pair, chats: list[Transcript], expected: list[np.ndarray]) -> list[TokenFigures]:
    with TranscriptReader(pair, **OPTIONS) as reader:
        return [
            compare(logits, np.concatenate(list(reader.answer_logits(chat))), [chat.token_ids[i] for i in chat.answers])
            for chat, logits in zip(chats, expected, strict=True)
        ]


def paired_ratio(before: list[TokenFigures], after: list[TokenFigures]) -> tuple[float, float, float]:
    """Geometric mean of after / before over all tokens, and its 95 % interval with chats as clusters."""
    logs = [np.log((a.kld + FLOOR) / (b.kld + FLOOR)) for a, b in zip(after, before, strict=True)]
    n = np.array([len(x) for x in logs])
    total = np.array([x.sum() for x in logs])
    mean = total.sum() / n.sum()
    error = np.sqrt(((total - mean * n) ** 2).sum()) / n.sum()
    return tuple(float(np.exp(mean + z * error)) for z in (0, -1.96, 1.96))


if __name__ == "__main__":
    main()
