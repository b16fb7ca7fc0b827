"""Run by test_interrupt.py in a process of its own: Ctrl-C again and again at something long, then: is all well?

Usage: interrupted.py TEXT MMPROJ WHAT; prints "well N", N being how many interruptions arrived.
"""

import os
import signal
import sys
import threading
import time

import numpy as np

import pyvllama

N_INTERRUPTIONS = 12


def interrupted(work, delay_s: float) -> bool:
    """Whether Ctrl-C, sent from another thread after a while, ended `work`, which is called until it does."""
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
    give_up = time.monotonic() + 10
    try:
        timer.start()
        while time.monotonic() < give_up:
            work()
    except KeyboardInterrupt:
        return True
    finally:
        timer.join()
    return False  # it came where Python ignores exceptions, in a __del__


def main(text: str, mmproj: str, what: str) -> None:
    options = {"kv_type": "f32", "cross_kv_type": "f32", "flash_attn": False, "n_threads": 1}
    llm = pyvllama.load(text, mmproj, n_ctx=2048, image_cache_bytes=0, **options)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    short = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Hello"}]}]
    long = [*short, {"role": "assistant", "content": "word " * 300}, {"role": "user", "content": "Why?"}]
    work = {
        "generation": lambda: llm.chat(short, temperature=1.0, top_p=1.0, max_tokens=400),
        "stream": lambda: [None for _ in llm.chat(short, temperature=1.0, top_p=1.0, max_tokens=400, stream=True)],
        "prompt": lambda: llm.logits(long),
        "encoding": lambda: llm.encode_image(picture),
        "turns": lambda: (llm.chat(long, max_tokens=1), llm.chat(short, max_tokens=5)),
    }[what]
    want, want_states = llm.logits(short), llm.encode_image(picture)
    n = 0
    for i in range(N_INTERRUPTIONS):
        n += interrupted(work, 0.004 + 0.013 * i)
        llm.chat(short, max_tokens=2)  # on what the interrupted call left in the cache
        got = llm.logits(short)
        assert np.abs(got - want).max() <= 1e-5 * np.sqrt(np.mean(want**2)), i
    assert (llm.encode_image(picture) == want_states).all()
    print("well", n)


if __name__ == "__main__":
    main(*sys.argv[1:])
