"""Encoded images by content: the same picture is encoded once, however it comes in."""

import hashlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pyvllama._runtime import native
from pyvllama.errors import BackendError, Cancelled
from pyvllama.image.tiling import preprocess
from pyvllama.image_store import ImageStore
from pyvllama.model import Model

__all__ = ["Encoded", "VisionCache"]

Progress = Callable[[float], bool | None]
_WAIT_S = 0.1  # between two looks at the progress of another thread's encoding


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image's ImageStates and what their encoding cost this call: 0 ms if they were there already.

    `cached`: they came from memory, from the disk, or from another thread that was at the same picture.
    """

    states: Any
    encode_ms: float
    cached: bool


class _Encoding:
    """A picture that a thread is at; the others wait."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.done = threading.Event()
        self.fraction = 0.0
        self.states: Any = None  # if it went well


class VisionCache:
    """ImageStates by the decoded pixels, least recently used first out. Thread-safe.

    Args:
        model: encodes; its preprocessing is part of what makes a picture the same.
        max_bytes: memory that the kept states may hold; 0 keeps none. States still in use elsewhere live on.
        store: where encoded pictures are kept on disk, if anywhere.
    """

    def __init__(self, model: Model, max_bytes: int, store: ImageStore | None = None) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._encodings: dict[bytes, _Encoding] = {}
        self._keys: weakref.WeakKeyDictionary[Any, bytes] = weakref.WeakKeyDictionary()

    def encode(self, image: Image.Image, progress: Progress | None = None) -> Encoded:
        """The image's ImageStates, from the cache or encoded now.

        A thread that asks for a picture which another one is encoding waits for it; if that one fails or is stopped,
        the next encodes.

        Args:
            image: RGB.
            progress: called with the fraction done, of another thread's encoding too; returning False stops (the
                waiting only, if another thread encodes) with Cancelled.

        Raises:
            Cancelled, BackendError: see `native.Mmproj.encode`.
        """
        key = self.key(image)
        while True:
            mine = _Encoding()
            try:
                with self._lock:
                    if key in self._kept:
                        self._kept.move_to_end(key)
                        return Encoded(self._kept[key], 0.0, True)
                    current = self._encodings.setdefault(key, mine)
                if current is mine:
                    return self._make(key, image, progress, mine)
            finally:
                with self._lock:
                    if self._encodings.get(key) is mine:
                        del self._encodings[key]
                mine.done.set()
            self._wait(current, progress)
            if current.states is not None:
                return Encoded(current.states, 0.0, True)

    def _make(self, key: bytes, image: Image.Image, progress: Progress | None, mine: _Encoding) -> Encoded:
        def tell(fraction: float) -> bool | None:
            mine.fraction = fraction
            return progress(fraction) if progress else None

        if self._store and (states := self._store.get(key)) is not None:
            mine.states = self.put(key, states)
            return Encoded(mine.states, 0.0, True)
        start = time.perf_counter()
        tiles = preprocess(image, self._model.preprocessor)
        if self._model.mmproj.device == "CPU":
            # The tower needs that memory for seconds. Text weights that lie in the mapped file come back from the page
            # cache; where others generate meanwhile (in a server), at once.
            for path in self._model.text_paths:
                native.drop_mapped_pages(path)
        states, _, _ = self._model.mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id, progress=tell)
        encode_ms = 1000 * (time.perf_counter() - start)
        mine.states = self.put(key, states)
        if self._store:
            mine.done.set()  # nobody waits for the disk
            self._store.put(key, states)
        return Encoded(mine.states, encode_ms, False)

    @staticmethod
    def _wait(encoding: _Encoding, progress: Progress | None) -> None:
        if encoding.thread == threading.get_ident():  # would wait forever
            raise BackendError("an image is being encoded, and its progress callback cannot encode it again")
        while not encoding.done.wait(_WAIT_S):
            if progress and progress(encoding.fraction) is False:
                raise Cancelled("stopped by its progress callback")

    def put(self, key: bytes, states: Any) -> Any:
        """Keep the states of a picture that was encoded elsewhere.

        Args:
            key: of the picture.
            states: ImageStates of this model.

        Returns:
            The states that the picture has here from now on: those that are kept already, if there are any.
        """
        with self._lock:
            states = self._kept.setdefault(key, states)
            self._kept.move_to_end(key)
            self._keys[states] = key
            while self._kept and sum(s.n_bytes for s in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
        return states

    @property
    def n_kept(self) -> tuple[int, int]:
        """(pictures kept in memory, their bytes)."""
        with self._lock:
            return len(self._kept), sum(s.n_bytes for s in self._kept.values())

    def key_of(self, states: Any) -> bytes:
        """The key of the picture that states from here belong to; also of some that are no longer kept.

        Raises:
            KeyError: they are not from here.
        """
        with self._lock:
            return self._keys[states]

    def clear(self) -> None:
        """Forget all of them; what is on disk stays."""
        with self._lock:
            self._kept.clear()

    @staticmethod
    def key(image: Image.Image) -> bytes:
        """What makes a picture the same as another: a digest of its pixels."""
        digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
        digest.update(image.tobytes())
        return digest.digest()
