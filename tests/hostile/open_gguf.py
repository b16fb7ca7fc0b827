"""Opens GGUF files one after the other and says what happened, one JSON line each: run as a process of its own, because
what is tested is that no file ends it.

    python open_gguf.py {directory,mmproj,encode,text:MMPROJ,session:DIR} FILE...

directory: pyvllama's Python reader. mmproj: the extension. encode: the extension, then a grey picture if it opened.
text: as the text file beside that mmproj, then a word if it loaded.
session: no GGUF file but a saved session, into the model of that directory, then a word if it loaded.
"""

import functools
import json
import resource
import sys
from pathlib import Path

import numpy as np

import pyvllama
from pyvllama._runtime import native
from pyvllama.gguf_file import GGUFFile

MEMORY = 6 << 30  # bytes of address space: a count from the file must not be allocated before it is believed


@functools.cache
def model_of(directory: str) -> pyvllama.LLM:
    return pyvllama.load(directory, n_ctx=256, n_threads=1, kv_type="f32", cross_kv_type="f32", flash_attn=False)


def open_as(kind: str, path: Path) -> None:
    if kind == "directory":
        GGUFFile(path)
        return
    if kind.startswith("text:"):
        with pyvllama.load(path, kind.removeprefix("text:"), n_ctx=64, n_threads=1) as llm:
            llm.logits([{"role": "user", "content": "Hello"}])
        return
    if kind.startswith("session:"):
        llm = model_of(kind.removeprefix("session:"))
        try:
            llm.load_session(path)
        finally:
            llm.chat([{"role": "user", "content": "Hello"}], max_tokens=2)
        return
    mmproj = native.Mmproj(str(path), n_threads=1)
    if kind == "encode":
        size = mmproj.hparams["image_size"]
        mmproj.encode(np.full((1, 3, size, size), 0.5, np.float32), 1)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kind, *paths = sys.argv[1:]
    print("ready", flush=True)
    for path in map(Path, paths):
        try:
            open_as(kind, path)
            verdict = {"error": None, "message": ""}
        except BaseException as e:
            verdict = {"error": type(e).__name__, "message": str(e)}
        print(json.dumps({"file": path.name} | verdict), flush=True)


main()
