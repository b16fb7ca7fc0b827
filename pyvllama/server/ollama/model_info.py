"""What is in a model's files, as Ollama's `/api/show` tells it; read without loading the model."""

import functools
import hashlib
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyvllama.file_names import parse_file_name
from pyvllama.gguf_file import GGUFFile
from pyvllama.server.ollama.responses import ModelDetails, ShowResponse, TensorEntry
from pyvllama.types import Pair

__all__ = ["CAPABILITIES", "FAMILY", "describe", "details_of", "digest_of", "human_number"]

CAPABILITIES = ("completion", "vision", "tools")
FAMILY = "mllama"
"""What Ollama called llama3.2-vision; apps look for it to find models that see."""
_LONG_ARRAY = 5  # Ollama leaves longer ones empty unless asked to be verbose
_HIDDEN = ("general.name", "tokenizer.chat_template")  # as Ollama does
_PARAMETERS = {  # llama.cpp's key: Ollama's parameter
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
}


def details_of(pair: Pair) -> ModelDetails:
    """Family, size and quantization of a pair of files.

    Raises:
        FormatError, ModelNotFound: a file is damaged or gone.
    """
    n_parameters, level = _counted(pair, _stamp(pair))
    return ModelDetails(
        family=FAMILY,
        families=[FAMILY],
        parameter_size=human_number(n_parameters),
        quantization_level=level,
    )


def describe(pair: Pair, name: str, *, verbose: bool = False) -> ShowResponse:
    """The answer of `/api/show`.

    Args:
        pair: the model's files.
        name: what it is called here.
        verbose: with long arrays and the tensors.

    Raises:
        FormatError, ModelNotFound: a file is damaged or gone.
    """
    text, mmproj = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    known = text.metadata
    info = _metadata(known, verbose) | {"general.parameter_count": _n_parameters(text, mmproj)}
    parameters = "\n".join(f"{ours:<30} {known[key]:g}" for key, ours in _PARAMETERS.items() if key in known)
    template = str(known.get("tokenizer.chat_template") or mmproj.metadata.get("clip.mllama.chat_template") or "")
    files = [*text.tensors.values(), *mmproj.tensors.values()]
    return ShowResponse(
        license=str(known["general.license"]) if "general.license" in known else None,
        modelfile=f"# Served by pyvllama; Ollama cannot run this model.\nFROM {name}\n",
        parameters=parameters,
        template=template,
        details=details_of(pair),
        model_info=info,
        projector_info=_metadata(mmproj.metadata, verbose),
        tensors=[TensorEntry(name=t.name, type=t.type.upper(), shape=list(t.shape[::-1])) for t in files]
        if verbose
        else None,
        capabilities=list(CAPABILITIES),
        modified_at=datetime.fromtimestamp(pair.text.stat().st_mtime, timezone.utc),
    )


def digest_of(pair: Pair) -> str:
    """64 hex digits that tell a model from others and from its older self, without reading gigabytes.

    Of the names, sizes and times of its files; files that are gone count as empty.
    """
    return hashlib.sha256(
        repr([(p.name, s) for p, s in zip((pair.text, pair.mmproj), _stamp(pair), strict=True)]).encode()
    ).hexdigest()


def human_number(n: int) -> str:
    """A count of parameters as Ollama writes it: 9.8B, 13B, 1.52M, 900K."""
    for size, unit, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if n >= size:
            value = n / size
            return f"{value:.0f}{unit}" if value == math.floor(value) else f"{value:.{digits}f}{unit}"
    return str(n)


def _stamp(pair: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
    """(bytes, ns since 1970 of the last change) of both files."""
    return _file_stamp(pair.text), _file_stamp(pair.mmproj)


def _file_stamp(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
    except OSError:
        return 0, 0
    return info.st_size, info.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _counted(pair: Pair, _when: Any) -> tuple[int, str]:
    """(parameters, quantization of the text file), read once for each state of the files."""
    text, mmproj = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    return _n_parameters(text, mmproj), _level(pair.text, text)


def _level(path: Path, text: GGUFFile) -> str:
    if (named := parse_file_name(path).type) is not None:
        return named
    n_bytes: dict[str, int] = {}
    for tensor in text.tensors.values():
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    return max(n_bytes, key=lambda kind: n_bytes[kind], default="unknown").upper()


def _n_parameters(*files: GGUFFile) -> int:
    return sum(math.prod(tensor.shape) for file in files for tensor in file.tensors.values())


def _metadata(metadata: dict[str, Any], verbose: bool) -> dict[str, Any]:
    shown = {key: value for key, value in metadata.items() if key not in _HIDDEN}
    if verbose:
        return shown
    return {key: [] if _is_long(value) else value for key, value in shown.items()}


def _is_long(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _LONG_ARRAY
