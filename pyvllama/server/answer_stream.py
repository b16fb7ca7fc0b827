"""A streamed response that lets go of what it needs, whatever becomes of the client."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["AnswerStream"]


class AnswerStream(StreamingResponse):
    """Sends what an iterator yields, as it comes.

    A plain StreamingResponse leaves an iterator alone that was never begun, because the client had gone before: then
    nobody would cancel the answer.

    Args:
        events: the body, piece by piece.
        stack: what is to be closed afterwards: the answer, and the use of its model.
        media_type: such as text/event-stream.
    """

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack, media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=media_type, headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as the client takes."""
        async with self._stack:
            await super().__call__(scope, receive, send)
