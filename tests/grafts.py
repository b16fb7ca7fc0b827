"""Text files that know no image token, as Llama 3.1's do not, made of the pocket model's."""

import struct
from pathlib import Path

import gguf_bytes
import numpy as np
from gguf_bytes import Gguf

N_VOCAB = 1280  # the pocket model's, without the image token and its padding


def without_image_token(text: Path, target: Path) -> Path:
    """The same text model as a file of vocab_size tokens, under another name and without a template for images."""

    def change(g: Gguf) -> None:
        cut_to_lm_head(g)
        g.set("general.name", gguf_bytes.STRING, gguf_bytes.string("somebody's own Llama 3.1"))

    return gguf_bytes.rewrite(text, target, change)


def with_own_tokens(text: Path, target: Path, n_more: int) -> Path:
    """The same text model in F32 with tokens of its own, control tokens, where the pair has its image token."""

    def change(g: Gguf) -> None:
        for name in ("token_embd.weight", "output.weight"):
            tensor = g.tensor(name)
            rows = np.frombuffer(tensor.data, np.float32).reshape(tensor.dims[1], -1)[: N_VOCAB + n_more].copy()
            rows[N_VOCAB:] = rows[300]
            tensor.dims[1], tensor.data = N_VOCAB + n_more, rows.tobytes()
        for key in g.keys:
            if key.name in {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}:
                key.payload = cut_array(key.payload, N_VOCAB)
                more = [gguf_bytes.string(f"<|own_{i}|>") for i in range(n_more)]
                if key.name.endswith("type"):
                    more = [struct.pack("<i", 3)] * n_more
                head = struct.unpack_from("<I", key.payload)[0]
                key.payload = struct.pack("<IQ", head, N_VOCAB + n_more) + key.payload[12:] + b"".join(more)
            elif key.name == "llama.vocab_size":
                key.payload = struct.pack("<I", N_VOCAB + n_more)

    return gguf_bytes.rewrite(text, target, change)


def cut_to_lm_head(g: Gguf) -> None:
    """Drop the image token and its padding: from vocab_size + 8 tokens to vocab_size."""
    for name in ("token_embd.weight", "output.weight"):
        tensor = g.tensor(name)
        n_row_bytes = len(tensor.data) // tensor.dims[1]
        tensor.dims[1], tensor.data = N_VOCAB, tensor.data[: N_VOCAB * n_row_bytes]
    for key in g.keys:
        if key.name in {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"}:
            key.payload = cut_array(key.payload, N_VOCAB)
        elif key.name == "llama.vocab_size":
            key.payload = struct.pack("<I", N_VOCAB)


def cut_array(payload: bytes, n: int) -> bytes:
    kind, _ = struct.unpack_from("<IQ", payload)
    at = 12
    for _ in range(n):
        at += 8 + struct.unpack_from("<Q", payload, at)[0] if kind == gguf_bytes.STRING else 4
    return struct.pack("<IQ", kind, n) + payload[12:at]
