"""What a quantized pair costs in quality: its token probabilities against those of a reference pair, over chats.

One model is in memory at a time. The reference's logits wait in a temporary file as they are, in float32: the
divergence of a Q8_0 model is about 1e-3, and rounding log-probabilities to float16 would add errors of that size (half
a unit in the last place is 1e-3 between 2 and 4, 8e-3 between 16 and 32). A row of 128 thousand tokens takes 513 kB.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyvllama.chats_file import read_chats
from pyvllama.divergence import Divergence, TokenFigures, compare, concatenate, summarize
from pyvllama.errors import BackendError, Cancelled, ConfigError, FormatError, PromptError
from pyvllama.gguf_file import GGUFFile
from pyvllama.locate import locate
from pyvllama.resolve import resolve
from pyvllama.tokenizer import IMAGE_TOKEN
from pyvllama.transcript_reader import TranscriptReader
from pyvllama.transcripts import Transcript, located
from pyvllama.types import Pair

__all__ = ["Evaluation", "PairSize", "evaluate"]

Progress = Callable[[float, str], "bool | None"]

_N_BATCH = 256  # rows whose logits are in memory at once: 131 MB each of 128 thousand tokens
_MIN_CHUNK = 16


@dataclass(frozen=True)
class PairSize:
    """A pair and the bytes of its tensors."""

    text: str
    mmproj: str
    text_bytes: int
    mmproj_bytes: int

    @property
    def n_bytes(self) -> int:
        """Of both files."""
        return self.text_bytes + self.mmproj_bytes


@dataclass(frozen=True)
class Evaluation:
    """A model against a reference.

    Attributes:
        model, reference: what was compared.
        all: over all answers.
        images: over answers in chats with pictures; None if there are none.
        texts: over answers in chats without pictures, and plain texts; None if there are none.
        n_image_chats, n_text_chats: how many of each (chunks of plain text are text chats).
    """

    model: PairSize
    reference: PairSize
    all: Divergence
    images: Divergence | None
    texts: Divergence | None
    n_image_chats: int
    n_text_chats: int

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def evaluate(
    model: str | Path | None,
    reference: str | Path | None,
    datasets: Sequence[str | Path],
    *,
    mmproj: str | Path | None = None,
    reference_mmproj: str | Path | None = None,
    n_ctx: int = 4096,
    chunk_tokens: int = 512,
    max_tokens: int = 128,
    work_dir: str | Path | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    mmproj_offload: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a pair's token probabilities with a reference's.

    What is compared are the answers: every token that the assistant says in the chats, the end of its turn included;
    of plain text the second half of each chunk. A chat that ends with the user's words is answered by the reference,
    greedily, and that answer is compared.

    Args:
        model: the pair to be judged, as `pyvllama.load` takes it.
        reference: the one that counts as right, say in BF16; of the same vocabulary. A text GGUF or a directory with
            both files: a checkpoint is not converted on the way, as it would be to four bits.
        datasets: files of chats (.jsonl) or text, see `chats_file`. Not those that an importance matrix was made of.
        mmproj, reference_mmproj: their mmproj files, where they are not beside the text files.
        n_ctx: positions of the context: the longest chat.
        chunk_tokens: plain text is cut into chunks of so many tokens.
        max_tokens: longest answer of the reference where a chat has none.
        work_dir: directory for the reference's logits, 4 bytes a token of the vocabulary for each token compared;
            None: the system's for temporary files.
        n_threads, n_gpu_layers, mmproj_offload: as `pyvllama.load` takes them.
        progress: called after every chat with the fraction done and what is next; returning False stops.

    Raises:
        ModelNotFound, FormatError, BackendError: as `pyvllama.load`; FormatError also for different vocabularies.
        ConfigError: an option out of range, a dataset that cannot be read, too little space on the disk.
        PromptError, ImageError: a chat or picture of a dataset; says which file and line.
        Cancelled: progress returned False.
    """
    if not _MIN_CHUNK <= chunk_tokens <= n_ctx:
        raise ConfigError(f"chunk_tokens must be between {_MIN_CHUNK} and n_ctx = {n_ctx}, not {chunk_tokens}")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, not {max_tokens}")
    pairs = locate(reference, reference_mmproj), resolve(model, mmproj)
    if _vocabulary(pairs[0]) != _vocabulary(pairs[1]):
        raise FormatError(
            f"{pairs[1].text} and {pairs[0].text} have different vocabularies: their probabilities cannot be compared"
        )
    items = read_chats(datasets)
    options: dict[str, Any] = {
        "n_ctx": n_ctx,
        "n_batch": min(_N_BATCH, n_ctx),
        "n_threads": n_threads,
        "n_gpu_layers": n_gpu_layers,
        "mmproj_offload": mmproj_offload,
    }
    tell = _Teller(progress)
    folder = Path(work_dir) if work_dir is not None else _temporary_folder()
    with _temporary_file(folder) as store:
        tell(0.0, "loading the reference")
        with TranscriptReader(pairs[0], **options) as reader:
            transcripts = reader.transcripts(items, chunk_tokens)
            _check_space(folder, transcripts, max_tokens, reader.model.n_vocab)
            for i, transcript in enumerate(transcripts):
                tell(0.5 * i / len(transcripts), f"reference: {transcript.where}")
                transcripts[i] = _keep_logits(reader, transcript, max_tokens, store)
        if not any(t.answers for t in transcripts):
            raise PromptError("the datasets hold no answers to compare: the texts are too short")
        store.seek(0)
        tell(0.5, "loading the model")
        with TranscriptReader(pairs[1], **options) as reader:
            figures = []
            for i, transcript in enumerate(transcripts):
                tell(0.5 + 0.5 * i / len(transcripts), f"model: {transcript.where}")
                figures.append(_compare_with_kept(reader, transcript, store))
    return _evaluation(pairs, transcripts, figures)


class _Teller:
    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, fraction: float, what: str) -> None:
        if self._progress is not None and self._progress(fraction, what) is False:
            raise Cancelled("the evaluation was stopped")


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as e:  # it tries to write there: a full disk ends here
        raise ConfigError(f"the reference's logits cannot be kept: {e.strerror or e}; name a work_dir") from e


@contextlib.contextmanager
def _temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A file without a name (where the system can): gone with the process, however that ends."""
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed below
    except OSError as e:
        raise ConfigError(f"{folder} cannot be written to: {e.strerror or e}; name another work_dir") from e
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # it still holds what a full disk did not take
            file.close()


def _check_space(folder: Path, transcripts: Sequence[Transcript], max_tokens: int, n_vocab: int) -> None:
    n_rows = sum(len(t.answers) + (max_tokens if t.is_open else 0) for t in transcripts)
    needed, free = 4 * n_rows * n_vocab, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"the reference's logits take up to {needed / 1e9:.1f} GB ({n_rows} tokens), but {folder} has "
            f"{free / 1e9:.1f} GB free: choose another work_dir, or fewer or shorter chats"
        )


_UNUSED = 5  # of tokenizer.ggml.token_type


def _vocabulary(pair: Pair) -> list[str]:
    """The tokens that the model can say; found without loading it."""
    tokens = GGUFFile(pair.text).metadata.get("tokenizer.ggml.tokens")
    n_vocab = GGUFFile(pair.mmproj).metadata.get("clip.mllama.text.vocab_size")
    if not isinstance(tokens, list) or not isinstance(n_vocab, int):
        raise FormatError(f"{pair.text} and {pair.mmproj} are no pair of this kind: they do not tell their vocabulary")
    types = GGUFFile(pair.text).metadata.get("tokenizer.ggml.token_type")
    more = zip(tokens[n_vocab:], types[n_vocab:] if isinstance(types, list) else (), strict=False)
    has_own = any(token != IMAGE_TOKEN and kind != _UNUSED for token, kind in more)  # as `Model.n_vocab` has it
    return tokens if has_own else tokens[:n_vocab]


def _keep_logits(reader: TranscriptReader, transcript: Transcript, max_tokens: int, store: IO[bytes]) -> Transcript:
    if transcript.is_open:
        cells = reader.cells(transcript)
        with located(transcript.where):
            reader.session.prefill(cells)
            transcript = transcript.answered(reader.answer(max_tokens))
    try:
        for part in reader.answer_logits(transcript):
            store.write(np.ascontiguousarray(part, "<f4").data)
        store.flush()
    except OSError as e:
        raise ConfigError(f"the reference's logits cannot be kept: {e.strerror or e}; name another work_dir") from e
    return transcript


def _compare_with_kept(reader: TranscriptReader, transcript: Transcript, store: IO[bytes]) -> TokenFigures:
    figures: list[TokenFigures] = []
    tokens = [transcript.token_ids[k] for k in transcript.answers]
    for part in reader.answer_logits(transcript):
        kept = np.frombuffer(store.read(4 * part.size), "<f4").reshape(part.shape)
        n = sum(len(f.kld) for f in figures)
        try:
            figures.append(compare(kept, part, tokens[n : n + len(part)]))
        except ValueError as e:
            raise BackendError(f"{transcript.where}: {e}: is the model damaged?") from e
    return concatenate(figures)


def _evaluation(
    pairs: tuple[Pair, Pair], transcripts: Sequence[Transcript], figures: Sequence[TokenFigures]
) -> Evaluation:
    with_images = [f for t, f in zip(transcripts, figures, strict=True) if t.images]
    without = [f for t, f in zip(transcripts, figures, strict=True) if not t.images]
    everything = summarize(concatenate(figures))
    assert everything is not None
    return Evaluation(
        model=_size(pairs[1]),
        reference=_size(pairs[0]),
        all=everything,
        images=summarize(concatenate(with_images)),
        texts=summarize(concatenate(without)),
        n_image_chats=len(with_images),
        n_text_chats=len(without),
    )


def _size(pair: Pair) -> PairSize:
    text, mmproj = (sum(t.n_bytes for t in GGUFFile(p).tensors.values()) for p in (pair.text, pair.mmproj))
    return PairSize(str(pair.text), str(pair.mmproj), text, mmproj)
