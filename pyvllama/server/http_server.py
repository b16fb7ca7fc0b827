"""Listening: uvicorn, with an end that finishes or fails every open stream."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from pyvllama.errors import ConfigError, VllamaError

__all__ = ["HttpServer", "bind"]

logger = logging.getLogger("pyvllama.server")

_LAST_WORDS_S = 5.0  # for streams that were broken off to tell their clients


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is not this machine's, in use, or not allowed.
    """
    bare = host.strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found.sort(key=lambda f: f[0] != socket.AF_INET)  # localhost is 127.0.0.1 for most clients
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(512)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        reason = e.strerror or str(e)
        raise ConfigError(f"cannot listen at {host} port {port}: {reason}; choose another --host or --port") from e
    return sock


class HttpServer(uvicorn.Server):
    """An application on a socket, until SIGINT, SIGTERM or `stop`; a second SIGINT does not wait for anything.

    Then no connection is accepted any more; answers that are running get `grace_s` seconds, after which they end with
    an error that their clients see, and the application is shut down.

    Args:
        app: of `create_app`.
        sock: listens already.
    """

    def __init__(self, app: FastAPI, sock: socket.socket) -> None:
        self._app, self._sock = app, sock
        grace_s = app.state.settings.grace_s
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # RequestLog writes ours
            server_header=False,
            proxy_headers=False,  # nobody's word for who asks is taken
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(grace_s + _LAST_WORDS_S),
        )
        super().__init__(config)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._sock.getsockname()[1])

    def listen(self) -> None:
        """Serve until the end.

        Raises:
            VllamaError: the default model cannot be loaded.
        """
        self.run(sockets=[self._sock])
        if isinstance(failure := self._app.state.failure, VllamaError):
            raise failure

    def stop(self) -> None:
        """Begin to stop; from any thread."""
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        return await super().on_tick(counter) or self._app.state.failed.is_set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the doors at once, and the models when the grace is over: uvicorn alone would only wait, then cut."""
        state: Any = self._app.state
        closing = asyncio.create_task(state.pool.close(state.settings.grace_s)) if state.owns_pool else None
        await super().shutdown(sockets)
        if closing is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stopping on request is a success: the signal is not raised again at the end, as uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {s: signal.signal(s, self.handle_exit) for s in signals}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
