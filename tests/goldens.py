"""Stored results of the oracle: small .npz files whose header says who made them, from what, and how."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN_DIR = Path(__file__).parent / "data" / "golden"
N_SAMPLES = 512  # values kept of each array


def sample(values: np.ndarray, n: int = N_SAMPLES) -> np.ndarray:
    """About n values spread over the whole array; an odd stride visits all columns of a matrix of even width."""
    step = max(1, values.size // n) | 1
    return np.ascontiguousarray(values.reshape(-1)[::step], np.float32)


def digest(directory: Path) -> str:
    """SHA-256 over the weights of a checkpoint directory, to tell changed weights from changed results."""
    total = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        total.update(file.read_bytes())
    return total.hexdigest()


def save(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header, sort_keys=True)
    np.savez_compressed(path, header=np.array(text), **arrays)


def load(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of tests/data/golden/<name>.npz."""
    with np.load(GOLDEN_DIR / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(str(arrays.pop("header"))), arrays
