"""Importance matrices of a pair: which columns of its weights matter, measured over chats with pictures and texts.

The text model's file is llama.cpp's own (`llama-quantize --imatrix` takes it); the mmproj's has the same form. See
`conversion/imatrix_file.py` for what is in them, csrc/importance.h for what is counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama._runtime import native
from pyvllama.chats_file import Chat, read_chats
from pyvllama.conversion.imatrix_file import ColumnSums, ImportanceMatrix
from pyvllama.conversion.output import check_existing, write_files
from pyvllama.errors import Cancelled, ConfigError
from pyvllama.file_names import IMATRIX_PREFIX, MMPROJ_PREFIX, parse_file_name
from pyvllama.locate import locate
from pyvllama.transcript_reader import TranscriptReader
from pyvllama.transcripts import Transcript, located

__all__ = ["Calibration", "collect_imatrix"]

Progress = Callable[[float, str], "bool | None"]

_MMPROJ_WEIGHTS = ("v.", "mm.", "xattn.")  # beginnings of their names
_MIN_CHUNK = 16


@dataclass(frozen=True)
class Calibration:
    """What was collected.

    Attributes:
        text: the file for the text model.
        mmproj: the file for the mmproj; None if the datasets hold no pictures.
        n_chats, n_chunks: chats, and chunks of plain text.
        n_tokens: positions read, answers of the model's own among them.
        n_images: different pictures.
        n_weights: weights with data, in both files.
    """

    text: Path
    mmproj: Path | None
    n_chats: int
    n_chunks: int
    n_tokens: int
    n_images: int
    n_weights: int


def collect_imatrix(
    model: str | Path | None,
    datasets: Sequence[str | Path],
    out_dir: str | Path,
    *,
    mmproj: str | Path | None = None,
    name: str | None = None,
    n_ctx: int = 4096,
    chunk_tokens: int = 512,
    max_tokens: int = 128,
    process_output: bool = False,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    mmproj_offload: bool = True,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Calibration:
    """Run a calibration set through a pair and write `imatrix-<name>.gguf` and `imatrix-mmproj-<name>.gguf`.

    All positions of a chat count, the answers among them. A picture counts once, however many chats show it. Nothing is
    written before everything has been read.

    Args:
        model, mmproj: the pair: a text GGUF, a directory with both files, or None: the bundled one. Best in BF16, F16
            or Q8_0; so a checkpoint is not converted on the way, as `pyvllama.load` would, to four bits.
        datasets: files of chats (.jsonl) or text, see `chats_file`.
        out_dir: directory for both files, made if need be.
        name: of the files; None: the text file's, without its type.
        n_ctx: positions of the context: the longest chat.
        chunk_tokens: plain text is cut into chunks of so many tokens.
        max_tokens: a chat that ends with the user's words is answered by the model, greedily, with at most so many
            tokens, which count as well; 0: such chats are only read.
        process_output: also collect for the text model's output matrix. llama.cpp leaves it out by default.
        n_threads, n_gpu_layers, mmproj_offload: as `pyvllama.load` takes them.
        progress: called after every chat with the fraction done and what is next; returning False stops.
        overwrite: replace files of the same names.

    Raises:
        ModelNotFound, FormatError, BackendError: as `pyvllama.load`.
        ConfigError: an option out of range, a dataset that cannot be read, a file that exists.
        PromptError, ImageError: a chat or picture of a dataset; says which file and line.
        Cancelled: progress returned False.
    """
    if not _MIN_CHUNK <= chunk_tokens <= n_ctx:
        raise ConfigError(f"chunk_tokens must be between {_MIN_CHUNK} and n_ctx = {n_ctx}, not {chunk_tokens}")
    if max_tokens < 0:
        raise ConfigError(f"max_tokens must not be negative, not {max_tokens}")
    pair = locate(model, mmproj)
    name = name or parse_file_name(pair.text).base
    paths = [Path(out_dir) / f"{IMATRIX_PREFIX}{kind}{name}.gguf" for kind in ("", MMPROJ_PREFIX)]
    check_existing(paths, overwrite=overwrite)
    items = read_chats(datasets)
    tell = progress or (lambda fraction, what: None)
    if tell(0.0, "loading the model") is False:
        raise Cancelled("the calibration was stopped; nothing was written")
    with TranscriptReader(
        pair,
        n_ctx=n_ctx,
        n_batch=min(512, n_ctx),
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        mmproj_offload=mmproj_offload,
    ) as reader:
        transcripts = reader.transcripts(items, chunk_tokens)
        counter = _Counter(reader, process_output)
        for i, transcript in enumerate(transcripts):
            if tell(i / len(transcripts), transcript.where) is False:
                raise Cancelled("the calibration was stopped; nothing was written")
            counter.read(transcript, max_tokens)
    matrices = counter.matrices(tuple(Path(d).name for d in datasets), chunk_tokens)
    files = [matrix.output_file(path) for matrix, path in zip(matrices, paths, strict=True) if len(matrix)]
    write_files(files, overwrite=overwrite)
    n_chats = sum(isinstance(item, Chat) for item in items)  # one transcript each; a text gives several
    return Calibration(
        text=paths[0],
        mmproj=paths[1] if len(matrices[1]) else None,
        n_chats=n_chats,
        n_chunks=len(transcripts) - n_chats,
        n_tokens=counter.n_tokens,
        n_images=len(counter.seen),
        n_weights=sum(map(len, matrices)),
    )


class _Counter:
    """Reads transcripts with a collector in the model."""

    def __init__(self, reader: TranscriptReader, process_output: bool) -> None:
        self.reader = reader
        self.collector = native.ImportanceCollector(process_output=process_output)
        self.n_tokens = 0
        self.seen: set[bytes] = set()
        reader.session.context.set_collector(self.collector)

    def read(self, transcript: Transcript, max_tokens: int) -> None:
        cells = self.reader.cells(transcript, self._on_image)
        session = self.reader.session
        with located(transcript.where):
            session.read(cells)
            if transcript.is_open and max_tokens > 0 and session.n_left > 0:
                self.reader.answer(max_tokens)
        self.n_tokens += session.n_past

    def _on_image(self, digest: bytes) -> None:
        # Each picture once, or else what is counted would depend on what a cache still holds.
        self.reader.model.mmproj.set_collector(None if digest in self.seen else self.collector)
        self.seen.add(digest)

    def matrices(self, datasets: tuple[str, ...], chunk_tokens: int) -> tuple[ImportanceMatrix, ImportanceMatrix]:
        """Of the text model and of the mmproj."""
        entries: dict[str, Any] = self.collector.entries
        text: dict[str, ColumnSums] = {}
        mmproj: dict[str, ColumnSums] = {}
        for weight, (sums, n_rows) in entries.items():
            part = mmproj if weight.startswith(_MMPROJ_WEIGHTS) else text
            part[weight] = ColumnSums(sums, n_rows)
        return ImportanceMatrix(text, datasets, chunk_tokens), ImportanceMatrix(mmproj, datasets, chunk_tokens)
