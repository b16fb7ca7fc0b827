"""A loaded model that reads transcripts from beginning to end."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pyvllama._runtime import default_n_threads
from pyvllama.chats_file import Chat, Text
from pyvllama.context import Context, ContextParams
from pyvllama.generation import generate
from pyvllama.image.source import load_image, numbered
from pyvllama.model import Model
from pyvllama.session import Cell, Session, require_room
from pyvllama.transcripts import Transcript, located, read_transcripts
from pyvllama.types import Pair, SamplingParams, Timings
from pyvllama.vision_cache import VisionCache

__all__ = ["TranscriptReader"]

_IMAGE_CACHE_BYTES = 512 << 20


class TranscriptReader:
    """A pair loaded for one task. A context manager. Not thread-safe.

    Args:
        pair: its two files.
        n_ctx: positions of the context: the longest transcript.
        n_batch: rows computed at once.
        n_threads: None: one a physical core.
        n_gpu_layers, mmproj_offload: as for Model.

    Raises:
        As `pyvllama.load`.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        n_ctx: int,
        n_batch: int,
        n_threads: int | None,
        n_gpu_layers: int,
        mmproj_offload: bool,
    ) -> None:
        threads = n_threads or default_n_threads()
        self.model = Model(
            pair.text, pair.mmproj, n_gpu_layers=n_gpu_layers, mmproj_offload=mmproj_offload, n_threads=threads
        )
        params = ContextParams(
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_batch, n_threads=threads, n_threads_batch=threads
        )
        try:
            self.session = Session(Context(self.model, params))
        except BaseException:
            self.model.close()
            raise
        self._images = VisionCache(self.model, _IMAGE_CACHE_BYTES)

    def __enter__(self) -> "TranscriptReader":
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._images.clear()
        self.session.close()
        self.session.context.close()
        self.model.close()

    def transcripts(self, items: Sequence[Chat | Text], chunk_tokens: int) -> list[Transcript]:
        """All transcripts of a dataset, see `read_transcripts`; what would fail in the middle of a long run fails here.

        Raises:
            PromptError, ImageError: a chat or a picture (unless it is on the net); says which file and line.
            ContextOverflow: a chat longer than the context.
        """
        found = [t for item in items for t in read_transcripts(item, self.model, chunk_tokens)]
        for transcript in found:
            with located(transcript.where):
                require_room(len(transcript.token_ids), self.session.context.n_ctx)
                for i, slot in enumerate(transcript.images, 1):
                    if not str(slot.source).lower().startswith(("http:", "https:")):
                        with numbered(i, len(transcript.images)):
                            load_image(slot.source)
        return found

    def cells(self, transcript: Transcript, on_image: Callable[[bytes], None] | None = None) -> list[Cell]:
        """The transcript's positions, its images encoded.

        Args:
            transcript: what is to be read.
            on_image: called before each image with the digest of its pixels.

        Raises:
            ImageError: an image cannot be read; says which file and line.
        """
        at = {}
        with located(transcript.where):
            for i, slot in enumerate(transcript.images, 1):
                with numbered(i, len(transcript.images)):
                    image = load_image(slot.source)
                if on_image:
                    on_image(self._images.key(image))
                at[slot.position] = self._images.encode(image).states
        # by its position, not by its id: another model's vocabulary may know no image token
        token = self.model.image_token
        return [Cell(token if i in at else t, at.get(i)) for i, t in enumerate(transcript.token_ids)]

    def answer_logits(self, transcript: Transcript) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of the rows before the answers' tokens, batch by batch: float32 [rows, n_vocab].

        Raises:
            As `cells`, and `Session.logits_of`.
        """
        if not transcript.answers:
            return
        cells = self.cells(transcript)[: transcript.answers[-1]]  # what follows the last answer predicts nothing
        with located(transcript.where):
            for part in self.session.logits_of(cells, {k - 1 for k in transcript.answers}):
                yield part[:, : self.model.n_vocab]

    def answer(self, max_tokens: int) -> list[int]:
        """What the model says next, greedily, after what the session has read; the end token included."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        return [sampled.token for sampled in generate(self.session, params, Timings())]
