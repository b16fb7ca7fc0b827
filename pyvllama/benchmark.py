"""How fast a model is on this machine: encoding pictures, reading prompts, generating, with and without a picture.

The tests are llama-bench's, and so are their names: `pp512` reads a prompt of 512 tokens, `tg128` generates 128 tokens
one by one, both on an empty context, without sampling. `@ 4 tiles`: every token sees a picture of 4 tiles. `image 4
tiles` is what a picture costs before its first token: preprocessing, vision tower, keys and values.
"""

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pyvllama._runtime import llama_cpp, machine_memory, native
from pyvllama.config import PreprocessorConfig, aspect_ratios
from pyvllama.context import Context, ContextParams, Row
from pyvllama.errors import Cancelled, ConfigError
from pyvllama.gguf_file import GGUFFile
from pyvllama.image.source import load_image
from pyvllama.image.tiling import preprocess
from pyvllama.loading import load_as
from pyvllama.model import Model
from pyvllama.resolve import resolve

__all__ = ["DEFAULT_TILES", "Benchmark", "Measured", "benchmark", "peak_memory"]

Progress = Callable[[float, str], "bool | None"]

DEFAULT_TILES = (1, 2, 4)


@dataclass(frozen=True)
class Measured:
    """One test.

    Attributes:
        test: its name: `image 4 tiles`, `pp512`, `tg128 @ 4 tiles`.
        n_tiles: tiles of the picture that is encoded or seen; 0: no picture.
        n_prompt, n_gen: tokens read, and generated; both 0: the picture was encoded.
        samples_ms: what each repetition took.
    """

    test: str
    n_tiles: int
    n_prompt: int
    n_gen: int
    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Of the repetitions."""
        return statistics.median(self.samples_ms)

    @property
    def per_second(self) -> float | None:
        """Tokens a second, by the median; None of a picture's encoding."""
        n = self.n_prompt + self.n_gen
        return 1000 * n / self.median_ms if n else None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "median_ms": self.median_ms, "per_second": self.per_second}


@dataclass(frozen=True)
class Benchmark:
    """A model on a machine.

    Attributes:
        model: description of the text model, as llama-bench has it: `llama 8B Q4_K - Medium`.
        text, mmproj: the files' names.
        text_bytes, mmproj_bytes: of their tensors.
        mmproj_type: type of most of the vision tower's bytes.
        n_params: of both files.
        backend: where it ran: the GPUs by ggml's names; without one, the CPU.
        gpu_layers: text layers that are on GPUs, the output counted as one.
        tower: where the vision tower is.
        n_threads: on the CPU.
        kernels: which of our own the CPU runs for pictures: `avx512_bf16`, `avx2`, ..., `ggml`: none.
        kv_type: of the self-attention cache.
        cross_kv_type: of the picture's keys and values.
        repack: whether weights were copied into the layout of the CPU's kernels.
        load_ms: from the files' names to a context; files that the system had in memory load faster.
        peak_memory: largest resident set of this process so far, in bytes, mapped files included; None where the system
            does not tell.
        results: in the order in which they were asked for.
        machine: processor, its cores as the system counts them, bytes of memory (both None where it does not tell),
            system and versions.
    """

    model: str
    text: str
    mmproj: str
    text_bytes: int
    mmproj_bytes: int
    mmproj_type: str
    n_params: int
    backend: str
    gpu_layers: int
    tower: str
    n_threads: int
    kernels: str
    kv_type: str
    cross_kv_type: str
    repack: bool
    load_ms: float
    peak_memory: int | None
    results: tuple[Measured, ...]
    machine: dict[str, str | int | None]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "results": [r.as_dict() for r in self.results]}


def benchmark(
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    *,
    n_prompt: Sequence[int] = (512,),
    n_gen: Sequence[int] = (128,),
    n_tiles: Sequence[int] | None = None,
    repetitions: int = 5,
    text_type: str | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    mmproj_offload: bool = True,
    kv_type: str = "f16",
    cross_kv_type: str = "f16",
    repack: bool = True,
    flash_attn: bool | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure a model. Repetitions of the tests alternate, after one of each that does not count.

    Args:
        model, mmproj, text_type, n_threads, n_gpu_layers, mmproj_offload, kv_type, cross_kv_type, repack, flash_attn:
            as `pyvllama.load` takes them.
        n_prompt: lengths of prompts; 0 is left out.
        n_gen: numbers of tokens to generate; 0 is left out.
        n_tiles: sizes of pictures, in tiles; empty: no pictures. The largest is the one that prompts and generated
            tokens see. None: 1, 2 and 4, as far as the model takes so many.
        repetitions: of each test.
        progress: called before every run with the fraction of runs done and the test's name; returning False stops.

    Raises:
        ModelNotFound, FormatError, CheckpointError, BackendError: as `pyvllama.load`.
        ConfigError: an option out of range, nothing to measure, a number of tiles that no picture of this model has, or
            more tokens than the model takes.
        Cancelled: progress returned False.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions must be at least 1, not {repetitions}")
    if any(n < 0 for n in (*n_prompt, *n_gen)):
        raise ConfigError(f"numbers of tokens must be at least 0, not {min(*n_prompt, *n_gen)}")
    if not any((*n_prompt, *n_gen)) and n_tiles is not None and not n_tiles:
        raise ConfigError("there is nothing to measure: no prompt, no answer and no picture")
    pair = resolve(model, mmproj, text_type=text_type)
    start = time.perf_counter()
    bench: _Bench = load_as(
        lambda loaded, params, _: _Bench(loaded, params),
        pair.text,
        pair.mmproj,
        n_ctx=max(*n_prompt, *n_gen, 1) + 1,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        mmproj_offload=mmproj_offload,
        kv_type=kv_type,
        cross_kv_type=cross_kv_type,
        repack=repack,
        flash_attn=flash_attn,
    )
    try:
        load_ms = 1000 * (time.perf_counter() - start)
        tiles = _tile_counts(n_tiles, bench.model.preprocessor)
        results = bench.measure(n_prompt, n_gen, tiles, repetitions, progress)
        return bench.report(load_ms, results)
    finally:
        bench.close()


def _tile_counts(wanted: Sequence[int] | None, config: PreprocessorConfig) -> tuple[int, ...]:
    known = {rows * cols for rows, cols in aspect_ratios(config.max_num_tiles)}
    if wanted is None:
        return tuple(n for n in DEFAULT_TILES if n in known)
    for n in wanted:
        if n not in known:
            raise ConfigError(f"pictures of this model have {', '.join(map(str, sorted(known)))} tiles, not {n}")
    return tuple(wanted)


@dataclass(frozen=True)
class _Test:
    """What is done, on which picture."""

    name: str
    n_tiles: int = 0
    n_prompt: int = 0
    n_gen: int = 0


class _Bench:
    """A loaded model that runs tests."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        if params.n_ctx > model.n_ctx_train:
            raise ConfigError(
                f"{params.n_ctx - 1} tokens are too many: at most {model.n_ctx_train - 1} can be measured, one "
                "less than the model was made for"
            )
        self.model = model
        self._params = params
        self._context = Context(model, params)
        self._states: dict[int, Any] = {}  # by tiles

    def close(self) -> None:
        self._states.clear()
        self._context.close()
        self.model.close()

    def measure(
        self,
        n_prompt: Sequence[int],
        n_gen: Sequence[int],
        n_tiles: Sequence[int],
        repetitions: int,
        progress: Progress | None,
    ) -> tuple[Measured, ...]:
        tests = [_Test(f"image {_tiles(n)}", n) for n in dict.fromkeys(n_tiles)]
        for tiles in (0, *([max(n_tiles)] if n_tiles else [])):
            seen = f" @ {_tiles(tiles)}" if tiles else ""
            tests += [_Test(f"pp{n}{seen}", tiles, n_prompt=n) for n in dict.fromkeys(n_prompt) if n]
            tests += [_Test(f"tg{n}{seen}", tiles, n_gen=n) for n in dict.fromkeys(n_gen) if n]
        samples: list[list[float]] = [[] for _ in tests]
        n_runs, done = len(tests) * (1 + repetitions), 0
        for _ in range(1 + repetitions):
            for test, times in zip(tests, samples, strict=True):
                if progress is not None and progress(done / n_runs, test.name) is False:
                    raise Cancelled("the benchmark was stopped")
                times.append(self._run(test))
                done += 1
        return tuple(
            Measured(test.name, test.n_tiles, test.n_prompt, test.n_gen, tuple(times[1:]))
            for test, times in zip(tests, samples, strict=True)
        )

    def _run(self, test: _Test) -> float:
        """Milliseconds that it took."""
        if not test.n_prompt + test.n_gen:
            return self._encode(test.n_tiles)
        images = (self._states[test.n_tiles],) if test.n_tiles else ()
        n = test.n_prompt + test.n_gen
        n_at_once = self._context.n_batch if test.n_prompt else 1
        # any tokens will do, but not special ones: llama-bench draws them at random
        tokens = np.random.default_rng(1).integers(0, min(1000, self.model.n_vocab), n).tolist()
        rows = [Row(token, i, images, logits=test.n_gen > 0 or i == n - 1) for i, token in enumerate(tokens)]
        self._context.remove(0, 0)
        start = time.perf_counter()
        for first in range(0, n, n_at_once):
            self._context.decode(rows[first : first + n_at_once])
            llama_cpp.llama_synchronize(self._context.handle)
        return 1000 * (time.perf_counter() - start)

    def _encode(self, n_tiles: int) -> float:
        config = self.model.preprocessor
        canvases = [c for c in aspect_ratios(config.max_num_tiles) if c[0] * c[1] == n_tiles]
        rows, cols = min(canvases, key=lambda canvas: abs(canvas[0] - canvas[1]))
        shape = (rows * config.tile_size, cols * config.tile_size, 3)
        picture = load_image(np.random.default_rng(1).integers(0, 256, shape, np.uint8))
        start = time.perf_counter()
        tiles = preprocess(picture, config)
        self._states[n_tiles], _, _ = self.model.mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id)
        return 1000 * (time.perf_counter() - start)

    def report(self, load_ms: float, results: tuple[Measured, ...]) -> Benchmark:
        text, mmproj = GGUFFile(self.model.text_path), GGUFFile(self.model.mmproj_path)
        n_text, n_mmproj = (sum(t.n_bytes for t in file.tensors.values()) for file in (text, mmproj))
        placement = self.model.placement
        return Benchmark(
            model=_text_description(self.model, text),
            text=self.model.text_path.name,
            mmproj=self.model.mmproj_path.name,
            text_bytes=n_text,
            mmproj_bytes=n_mmproj,
            mmproj_type=_main_type(mmproj, "v."),
            n_params=sum(int(np.prod(t.shape)) for file in (text, mmproj) for t in file.tensors.values()),
            backend=",".join(placement.gpus) or "CPU",
            gpu_layers=sum(placement.shares),
            tower=self.model.mmproj.device,
            n_threads=self._params.n_threads,
            kernels=self.model.mmproj.kernels,
            kv_type=self._params.kv_type,
            cross_kv_type=self.model.cross_kv_type,
            repack=self.model.repack,
            load_ms=load_ms,
            peak_memory=peak_memory(),
            results=results,
            machine=_machine(),
        )


def _tiles(n: int) -> str:
    return f"{n} tile{'s'[: n > 1]}"


def _text_description(model: Model, file: GGUFFile) -> str:
    text = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(model.handle, text, len(text))
    # of shapes that llama.cpp does not know, the parameters as they are
    billions = sum(int(np.prod(t.shape)) for t in file.tensors.values()) / 1e9
    return text.value.decode(errors="replace").replace(" ?B ", f" {billions:.2g}B ")


def _main_type(file: GGUFFile, prefix: str) -> str:
    n_bytes: dict[str, int] = {}
    for name, tensor in file.tensors.items():
        if name.startswith(prefix):
            n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    return max(n_bytes, key=lambda t: n_bytes[t])


def _machine() -> dict[str, str | int | None]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory": machine_memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "pyvllama": metadata.version("pyvllama"),
        "llama-cpp-python": metadata.version("llama-cpp-python"),
        "llama.cpp": native.llama_cpp_commit,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """The largest resident set that this process ever had, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what ran in this process before exec as well
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
