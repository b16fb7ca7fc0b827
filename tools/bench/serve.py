#!/usr/bin/env python3
"""The server under load, beside llama-cpp-python's own on the same text GGUF.

    tools/bench/serve.py [MODEL] [--clients 8] [--requests 5000] [--rounds 5] [--json FILE]

With the bundled pocket model every answer is known and checked. Each server is a process of its own; this one costs
a little of the same cores. One client and several take turns, so that a busy machine slows both. llama-cpp-python's
server gets the same text chats: it sees no pictures, and takes one request at a time. The bound says what sharing a
batch can gain on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from http_client import Client, Reply
from machine import describe
from PIL import Image

import pyvllama
from pyvllama.context import Context, ContextParams, Row
from pyvllama.resolve import resolve
from pyvllama.types import Pair

SAMPLES = Path(__file__).resolve().parents[2] / "tests" / "data" / "pocket-vllama" / "samples"
GREEDY = {"temperature": 0, "max_tokens": 64}
TEXTS = ("Hello!", "Who are you?", "What can you do?", "What is this?", "Tell me something.", "Are you there?")


@dataclass
class Chat:
    """A request, and its one right answer where that is known."""

    body: dict[str, Any]
    expected: str | None = None


def text_chats() -> list[Chat]:
    return [Chat({"messages": [{"role": "user", "content": text}], **GREEDY}) for text in TEXTS]


def picture_chats() -> list[Chat]:
    """All questions about all samples."""
    chats = []
    for sample in json.loads((SAMPLES / "expected.json").read_text(encoding="utf-8"))["samples"]:
        uri = "data:image/png;base64," + base64.b64encode((SAMPLES / sample["image"]).read_bytes()).decode()
        for qa in sample["qa"]:
            content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": qa["question"]}]
            chats.append(Chat({"messages": [{"role": "user", "content": content}], **GREEDY}, qa["expected"]))
    return chats


class Server:
    """A server's process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    @property
    def resident(self) -> int:
        """Its resident set, in bytes (Linux)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Server]:
    """The server, once it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} does not answer:\n{log.read()[-2000:].decode()}")
                time.sleep(0.1)
            yield Server(process, port)
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def drive(server: Server, chats: list[Chat], n_clients: int) -> tuple[list[list[tuple[Chat, Reply]]], float]:
    """Answer all chats; each client takes the next one as soon as it is free. Returns per client, and seconds."""
    queue = iter(chats)

    async def one() -> list[tuple[Chat, Reply]]:
        client, found = Client("127.0.0.1", server.port), []
        for chat in queue:
            found.append((chat, await client.chat(chat.body)))  # noqa: PERF401
        await client.close()
        return found

    start = time.perf_counter()
    results = await asyncio.gather(*(one() for _ in range(n_clients)))
    return list(results), time.perf_counter() - start


def figures(results: list[list[tuple[Chat, Reply]]], seconds: float) -> dict[str, Any]:
    """Of one run."""
    replies = [reply for client in results for _, reply in client]
    first = sorted(reply.first_s for reply in replies)
    tokens = [sum(reply.n_tokens for _, reply in client) for client in results]
    return {
        "requests": len(replies),
        "tokens": sum(tokens),
        "tokens_per_second": sum(tokens) / seconds,
        "requests_per_second": len(replies) / seconds,
        "first_token_ms_median": 1000 * median(first),
        "first_token_ms_p95": 1000 * first[int(0.95 * (len(first) - 1))],
        "fairness": min(tokens) / max(tokens) if len(tokens) > 1 else 1.0,
        "errors": sum(reply.error is not None for reply in replies),
    }


def in_turns(server: Server, chats: list[Chat], counts: list[int], rounds: int) -> dict[int, dict[str, Any]]:
    """Medians over rounds, in which all numbers of clients take turns."""
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in counts}
    for _ in range(rounds):
        for n in counts:
            found[n].append(figures(*asyncio.run(drive(server, chats, n))))
    return {n: {key: median(run[key] for run in runs) for key in runs[0]} for n, runs in found.items()}


def endurance(server: Server, n_requests: int, n_clients: int) -> dict[str, Any]:
    """Mixed chats with known answers: lost, wrong, and the memory after each fifth."""
    known: dict[str, str | None] = dict.fromkeys(TEXTS)
    mixed = [*picture_chats(), *text_chats()]
    order = random.Random(7)
    resident, lost, wrong, tokens, seconds = [], 0, 0, 0, 0.0
    for n in [n_requests // 5] * 5:
        results, took = asyncio.run(drive(server, order.choices(mixed, k=n), n_clients))
        for chat, reply in itertools.chain(*results):
            content = chat.body["messages"][0]["content"]
            if chat.expected is None and known[content] is None:
                known[content] = reply.text
            lost += reply.error is not None
            wrong += reply.error is None and reply.text != (chat.expected or known[content])
            tokens += reply.n_tokens
        seconds += took
        resident.append(server.resident)
    return {
        "requests": 5 * (n_requests // 5),
        "clients": n_clients,
        "lost": lost,
        "wrong": wrong,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": 5 * (n_requests // 5) / seconds,
        "resident_after_each_fifth": resident,
        "growth_over_the_last_four_fifths": resident[-1] / resident[0] - 1,
    }


async def _beside(server: Server, seconds: float, *, with_pictures: bool) -> dict[str, float]:
    """Two endless text chats, and beside them, one after another, pictures that nobody has seen before."""
    deadline = time.perf_counter() + seconds
    endless = {"max_tokens": 40, "temperature": 0, "logit_bias": {str(t): -100 for t in _ends(server.port)}}
    counts = {"text": 0, "pictures": 0}

    async def talk(i: int) -> None:
        client = Client("127.0.0.1", server.port)
        while time.perf_counter() < deadline:
            reply = await client.chat({"messages": [{"role": "user", "content": f"Hello {i}"}], **endless})
            counts["text"] += reply.n_tokens
        await client.close()

    async def show() -> None:
        client = Client("127.0.0.1", server.port)
        while time.perf_counter() < deadline:
            picture = io.BytesIO()
            Image.effect_noise((560, 560), 99).save(picture, "PNG")
            uri = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is this?"}]
            await client.chat({"messages": [{"role": "user", "content": content}], **GREEDY})
            counts["pictures"] += 1
        await client.close()

    start = time.perf_counter()
    await asyncio.gather(talk(1), talk(2), *([show()] if with_pictures else []))
    took = time.perf_counter() - start
    return {"tokens_per_second": counts["text"] / took, "pictures_per_second": counts["pictures"] / took}


def beside(server: Server, rounds: int, seconds: float = 4.0) -> dict[str, float]:
    """What other chats keep of their tokens while pictures are encoded; medians of rounds in turns."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(rounds):
        for with_pictures, runs in found.items():
            runs.append(asyncio.run(_beside(server, seconds, with_pictures=with_pictures)))
    alone, busy = (median(run["tokens_per_second"] for run in found[key]) for key in (False, True))
    pictures = median(run["pictures_per_second"] for run in found[True])
    return {"alone": alone, "beside_pictures": busy, "kept": busy / alone, "pictures_per_second": pictures}


def _ends(port: int) -> list[int]:
    """The end tokens, which an endless chat never chooses."""
    body = json.dumps({"content": "<|eot_id|><|end_of_text|><|eom_id|>", "parse_special": True, "add_special": False})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/tokenize", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return list(json.load(response)["tokens"])


def decode_bound(pair: Pair, n_rows: int, n_threads: int, repeats: int = 40) -> dict[str, float]:
    """What batching can gain on this machine: llama_decode alone, one row and one row of each of n sequences."""
    made = pyvllama.load(pair.text, pair.mmproj, n_threads=n_threads, n_ctx=512)
    params = ContextParams(n_ctx=2048, n_seq_max=n_rows, n_threads=n_threads, n_threads_batch=n_threads)
    context = Context(made.model, params)
    for seq in range(n_rows):
        context.decode([Row(5 + seq, pos, (), seq) for pos in range(40)])
    took: dict[int, list[float]] = {1: [], n_rows: []}
    for _ in range(repeats):
        for n, times in took.items():
            start = time.perf_counter()
            context.decode([Row(7, 40, (), seq, True) for seq in range(n)])
            times.append(1000 * (time.perf_counter() - start))
            for seq in range(n):
                context.remove(seq, 40)
    context.close()
    made.close()
    one, several = median(took[1]), median(took[n_rows])
    return {"one_ms": one, "several_ms": several, "gain": n_rows * one / several}


def table(title: str, found: dict[int, dict[str, Any]]) -> None:
    print(f"\n{title}\nclients  tok/s  req/s  first token ms (p95)  fairness")
    for n, f in found.items():
        first = f"{f['first_token_ms_median']:.1f} ({f['first_token_ms_p95']:.1f})"
        print(f"{n:7} {f['tokens_per_second']:6.0f} {f['requests_per_second']:6.1f}  {first:>20}  {f['fairness']:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the pocket model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=5000, help="of the endurance run; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chats", type=int, default=200, help="in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pair: Pair = resolve(args.model)
    order, counts = random.Random(3), sorted({1, args.clients})
    texts = order.choices(text_chats(), k=args.chats)
    found: dict[str, Any] = {"machine": describe("uvicorn", "fastapi"), "model": pair.text.name}
    port = free_port()
    ours = ["pyvllama.cli.main", "serve", str(pair.text), "--mmproj", str(pair.mmproj), "--port", str(port)]
    ours += ["--threads", str(args.threads), "--parallel", str(args.clients)]
    with running(ours, port) as server:
        found["text"] = in_turns(server, texts, counts, args.rounds)
        table("pyvllama serve, text", found["text"])
        if args.model is None:
            mixed = order.choices([*picture_chats(), *text_chats()], k=args.chats)
            asyncio.run(drive(server, mixed, args.clients))  # each picture is encoded once
            found["mixed"] = in_turns(server, mixed, counts, args.rounds)
            table("pyvllama serve, text and pictures", found["mixed"])
            found["beside"] = beside(server, args.rounds)
            print(json.dumps(found["beside"], indent=1))
            if args.requests:
                found["endurance"] = endurance(server, args.requests, args.clients)
                print(json.dumps(found["endurance"], indent=1))
    port = free_port()
    theirs = ["llama_cpp.server", "--model", str(pair.text), "--port", str(port), "--n_threads", str(args.threads)]
    theirs += ["--n_ctx", "8192", "--interrupt_requests", "false"]  # else a new request breaks the running one off
    with running(theirs, port) as server:
        found["llama_cpp.server"] = in_turns(server, texts, counts, args.rounds)
        table("llama_cpp.server, text", found["llama_cpp.server"])
    for kind in ("text", "mixed"):
        if kind in found:
            one, several = (found[kind][n]["tokens_per_second"] for n in (1, args.clients))
            found[kind]["gain"] = several / one
            print(f"{kind}: {args.clients} clients get {several / one:.2f} times the tokens of one")
    found["decode"] = decode_bound(pair, args.clients, args.threads)
    print(
        f"the bound: llama.cpp computes {args.clients} rows in {found['decode']['several_ms']:.3f} ms and one in "
        f"{found['decode']['one_ms']:.3f} ms, so {found['decode']['gain']:.2f} times the tokens at most while decoding"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
