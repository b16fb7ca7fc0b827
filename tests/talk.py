"""Short ways to say something to a loaded model and to read what it says."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

import pyvllama
from pyvllama._runtime import llama_cpp

# Nothing rounded on the way: what is equal by design is then equal in numbers.
EXACT = {"kv_type": "f32", "cross_kv_type": "f32", "flash_attn": False, "n_threads": 1}


def user(*parts: Any) -> dict[str, Any]:
    """A user's message of texts (str) and pictures (anything else)."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def text_of(completion: dict[str, Any]) -> str:
    return completion["choices"][0]["message"]["content"]


def joined(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def last_logits(llm: pyvllama.LLM) -> np.ndarray:
    """The logits that the next token would be chosen from, [n_vocab]; the public API has no such word."""
    pointer = llama_cpp.llama_get_logits_ith(llm._session.context.handle, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.model.n_vocab,)).copy()
