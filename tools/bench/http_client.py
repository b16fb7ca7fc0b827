"""A client of chat completions that costs next to nothing: what is measured is the server."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """A streamed answer.

    Attributes:
        text: all of it.
        n_tokens: by the server's `usage`, or else the number of pieces.
        first_s, all_s: seconds to the first piece with text, and to the end.
        error: what went wrong; None: nothing.
    """

    text: str = ""
    n_tokens: int = 0
    first_s: float = 0.0
    all_s: float = 0.0
    error: str | None = None
    timings: dict[str, Any] = field(default_factory=dict)


class Client:
    """One connection, kept open; requests one after another."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def chat(self, body: dict[str, Any]) -> Reply:
        """POST /v1/chat/completions with stream = true."""
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._where[0]}:{self._where[1]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        reply, start = Reply(), time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._where, limit=1 << 22)
            reader, writer = self._streams
            writer.write(head.encode() + data)
            await self._read(reader, reply, start)
        except (OSError, asyncio.IncompleteReadError, ValueError) as e:
            reply.error = repr(e)
        if reply.error is not None:
            await self.close()
        reply.all_s = time.perf_counter() - start
        return reply

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _read(self, reader: asyncio.StreamReader, reply: Reply, start: float) -> None:
        header = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(header.split()[1])
        if status != 200 or "chunked" not in header.lower():
            reply.error = f"status {status}"
            return
        pieces: list[str] = []
        rest = b""
        while size := int(await reader.readline(), 16):
            rest += (await reader.readexactly(size + 2))[:-2]
            *events, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                self._take(event, reply, pieces, start)
        await reader.readline()
        reply.text = "".join(pieces)
        reply.n_tokens = reply.n_tokens or len(pieces)

    @staticmethod
    def _take(event: bytes, reply: Reply, pieces: list[str], start: float) -> None:
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            return
        chunk = json.loads(event[len(b"data: ") :])
        if "error" in chunk:
            reply.error = str(chunk["error"])
        for choice in chunk.get("choices") or ():
            if text := choice["delta"].get("content"):
                if not pieces:
                    reply.first_s = time.perf_counter() - start
                pieces.append(text)
        if usage := chunk.get("usage"):
            reply.n_tokens = usage["completion_tokens"]
        if timings := chunk.get("timings"):
            reply.timings = timings
