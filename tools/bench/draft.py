#!/usr/bin/env python3
"""What guessing ahead costs and what it can save: milliseconds a token, with no draft and with right and wrong ones.

    tools/bench/draft.py [TEXT.gguf] [--mmproj FILE] [--guesses 1 2 3 ...] [--tokens 32] [--rounds 3] [--json FILE]

Random weights will do: a bias makes every answer (about a picture) the same token again and again, which changes no
matrix. A draft that is always wrong shows the pure overhead of k guesses (a batch of 1 + k rows makes one token), one
that is always right the upper bound; both cost nothing themselves. From the overhead follows which share of the guesses
must be right to break even, if each is right with the same probability whatever came before: a batch makes 1 + p + ...
+ p^k tokens. A draft model's own time comes on top. Configurations take turns in every round; printed are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

import pyvllama
from pyvllama.draft import Draft

WORD = 1000  # a token that is no end
PROMPT = "Describe the picture in every detail, from left to right. " * 4


class Constant(Draft):
    """Guesses one token, again and again."""

    def __init__(self, n_max: int, token: int) -> None:
        super().__init__(n_max)
        self.token = token

    def propose(self, tokens: Sequence[int], n: int) -> list[int]:
        """See Draft."""
        return [self.token] * n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the bundled pocket model")
    parser.add_argument("--mmproj")
    parser.add_argument("--guesses", type=int, nargs="+", default=(1, 2, 3, 4, 7, 8))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with pyvllama.load(args.model, args.mmproj, n_threads=args.threads, n_ctx=2048) as llm:
        result = {
            "machine": describe(),
            "model": llm.model.name,
            "files": [llm.model.text_path.name, llm.model.mmproj_path.name],
            "n_threads": llm.model.n_threads,
            **measure(llm, args.guesses, args.tokens, args.rounds),
        }
    print(json.dumps(result["machine"]))
    print(f"{result['model']}: {result['plain_ms']:.1f} ms a token without a draft")
    for row in result["rows"]:
        print(
            f"k = {row['k']}: always wrong {row['wrong_ms']:.1f} ms a token (x {row['overhead']:.2f}), always right "
            f"{row['right_ms']:.1f} (x {row['best']:.2f}); pays from "
            f"{'never' if row['breaks_even_at'] is None else format(row['breaks_even_at'], '.0%')} right guesses on"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


def measure(llm: pyvllama.LLM, guesses: Sequence[int], n_tokens: int, rounds: int) -> dict[str, Any]:
    ask(llm, None, n_tokens)  # the picture is encoded, the weights are in memory
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        times.setdefault(("plain", 0), []).append(ms_per_token(ask(llm, None, n_tokens)))
        for k in guesses:
            for kind, token in (("wrong", WORD + 1), ("right", WORD)):
                timings = ask(llm, Constant(k, token), n_tokens)
                assert timings["draft_n_accepted"] == (timings["draft_n"] if kind == "right" else 0)
                times.setdefault((kind, k), []).append(ms_per_token(timings))
    medians = {key: statistics.median(values) for key, values in times.items()}
    plain = medians["plain", 0]
    rows = [
        {
            "k": k,
            "wrong_ms": medians["wrong", k],
            "right_ms": medians["right", k],
            "overhead": medians["wrong", k] / plain,
            "best": medians["right", k] / plain,
            "breaks_even_at": break_even(medians["wrong", k] / plain, k),
        }
        for k in guesses
    ]
    spread = {f"{kind} {k}": values for (kind, k), values in times.items()}
    return {"plain_ms": plain, "rows": rows, "n_tokens": n_tokens, "all_ms": spread}


def break_even(cost: float, k: int) -> float | None:
    """The p with 1 + p + ... + p^k = cost, cost being a batch's time in single rows; None: it never pays."""
    if cost > k + 1:
        return None
    p = np.linspace(0, 1, 10001)
    return float(p[np.argmax(sum(p**i for i in range(k + 1)) >= cost)])


def ask(llm: pyvllama.LLM, draft: Draft | None, n_tokens: int) -> dict[str, float]:
    """The timings of an answer of n_tokens tokens, all of them WORD."""
    llm._draft = draft
    picture = np.random.default_rng(0).integers(0, 256, (560, 560, 3), dtype=np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
    got = llm.chat([{"role": "user", "content": content}], max_tokens=n_tokens, temperature=0, logit_bias={WORD: 1e6})
    assert got["usage"]["completion_tokens"] == n_tokens
    timings: dict[str, float] = got["timings"]
    return timings


def ms_per_token(timings: dict[str, Any]) -> float:
    """Without the first token, which costs only its choice: the prompt's last row has its logits."""
    return timings["predicted_ms"] / (timings["predicted_n"] - 1)


if __name__ == "__main__":
    main()
