"""A download from the Hub as Ollama tells of one: status by status, file by file."""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncGenerator

from pyvllama.errors import BackendError, VllamaError
from pyvllama.hub_models import PairNames, fetch_pair
from pyvllama.server.ollama.responses import OllamaProgressResponse

__all__ = ["Pull"]

_EVERY_S = 0.1  # a file's progress is told no more often


class Pull:
    """Fetches a pair on a thread of its own, into the Hub client's cache.

    Args:
        repo_id: `user/repo`.
        names: the files of it.
    """

    def __init__(self, repo_id: str, names: PairNames) -> None:
        self._repo_id, self._names = repo_id, names
        self._news: asyncio.Queue[OllamaProgressResponse | Exception | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self._told: tuple[str, float] = ("", 0.0)

    async def steps(self) -> AsyncGenerator[OllamaProgressResponse, None]:
        """What happens, as it happens; left before its end, the download stops; asked for again, it fetches the rest.

        Raises:
            ModelNotFound, FormatError: as `fetch_pair`.
        """
        yield OllamaProgressResponse(status="pulling manifest")
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(loop,), name="pyvllama-pull", daemon=True).start()
        try:
            while (news := await self._news.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self._stopped.set()
        yield OllamaProgressResponse(status="success")

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        def tell(news: OllamaProgressResponse | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(self._news.put_nowait, news)

        def progress(name: str, done: int, total: int | None) -> bool:
            file, when = self._told
            if file != name or done == total or time.monotonic() - when >= _EVERY_S:
                self._told = name, time.monotonic()
                tell(self._step(name, done, total))
            return not self._stopped.is_set()

        try:
            fetch_pair(self._repo_id, self._names, progress=progress)
            tell(None)
        except VllamaError as e:
            tell(e)
        except Exception as e:  # whatever the client raises
            tell(BackendError(f"{self._repo_id} could not be downloaded: {e!r:.300}"))

    def _step(self, name: str, done: int, total: int | None) -> OllamaProgressResponse:
        """Clients show files by their digest; this one is of the name, as the content's is not known yet."""
        digest = hashlib.sha256(f"{self._repo_id}/{name}".encode()).hexdigest()
        return OllamaProgressResponse(
            status=f"pulling {name}", digest=f"sha256:{digest}", total=total, completed=done or None
        )
