"""What tells the weights of a GGUF file from others, without reading all of them."""

import hashlib
import json

from pyvllama.gguf_file import GGUFFile

__all__ = ["weights_fingerprint"]

_WHOLE_BYTES = 64 << 10  # tensors up to this size count with every byte: norms, gates, biases
_N_SAMPLES, _SAMPLE_BYTES = 8, 4 << 10  # of larger ones: pieces spread evenly, the first and the last bytes among them


def weights_fingerprint(file: GGUFFile, prefix: str) -> str:
    """Identify the weights of a file as they are quantized, wherever it lies and whatever it is called.

    For telling models apart that people have, not for proof against forgery: of large tensors only samples are read,
    some 20 MB of an 11B model's mmproj. Training changes all of a matrix, and so does quantizing it otherwise.

    Args:
        file: the file.
        prefix: of the metadata keys that belong to the model's numbers, such as "clip."; others don't count.

    Returns:
        SHA-256 in hex over these keys, and every tensor's name, type, shape and bytes or samples.
    """
    numbers = {key: value for key, value in file.metadata.items() if key.startswith(prefix)}
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True, default=repr).encode())
    for name in sorted(file.tensors):
        info = file.tensors[name]
        digest.update(json.dumps([name, info.type, info.shape]).encode())
        data = file.raw(name).reshape(-1)
        if data.size <= _WHOLE_BYTES:
            digest.update(data.tobytes())
            continue
        last = data.size - _SAMPLE_BYTES
        for i in range(_N_SAMPLES):
            start = last * i // (_N_SAMPLES - 1)
            digest.update(data[start : start + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()
