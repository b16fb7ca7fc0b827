"""`/v1/chat/completions`."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pyvllama.server.answer import Answer
from pyvllama.server.openai.answers import ChatChunk, ChatCompletion
from pyvllama.server.openai.chat_request import ChatRequest, read_conversation
from pyvllama.server.openai.costs import costs_of, timings_of
from pyvllama.server.openai.documents import streamed
from pyvllama.server.openai.events import DONE, PING, PING_S, begin_stream, event, or_error, with_usage_null
from pyvllama.server.openai.requested import begin_chat, served_model

__all__ = ["chat_chunks", "router"]

router = APIRouter(tags=["OpenAI"])
_ANSWERS = streamed(
    ChatChunk,
    "The answers.",
    "a chunk for each piece of an answer, the first of each has the role, the last its finish_reason; then `[DONE]`. "
    "An error on the way is a last event with `error`.",
)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_ANSWERS)
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation, with pictures in it or without."""
    messages = read_conversation(body.messages)
    async with AsyncExitStack() as stack:
        served = await served_model(request, stack, body.model)
        shift = bool(body.context_shift)
        answer = await begin_chat(request, stack, served, body, messages, body.options(), context_shift=shift)
        if body.stream:
            events = or_error(_events(answer, include_usage=body.include_usage))
            return begin_stream(events, stack)
        completion = answer.completion.whole(await answer.whole(request))
        return JSONResponse({**completion, **costs_of(answer)})


async def chat_chunks(answer: Answer) -> AsyncGenerator[list[dict[str, Any]], None]:
    """`chat.completion.chunk` objects, those that are there; none for a sign of life. See `Completion.chunks_of`."""
    yield [answer.completion.begin(choice) for choice in range(answer.options.n)]
    async for batch in answer.batches(PING_S):
        chunks = [chunk for delta in batch for chunk in answer.completion.chunks_of(delta)]
        if chunks or not batch:
            yield chunks


async def _events(answer: Answer, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Chunks. The last one has the `timings`; `usage` only if it was asked for, in a chunk of its own."""
    head: dict[str, Any] = {}
    async for chunks in chat_chunks(answer):
        if not chunks:
            yield PING
            continue
        head = head or {**chunks[0], "choices": []}
        if chunks[-1].pop("usage", None) is not None:  # the last of all
            chunks[-1].pop("timings")
            chunks[-1].update({} if include_usage else {"timings": timings_of(answer)})
        yield b"".join(map(event, with_usage_null(chunks) if include_usage else chunks))
    if include_usage:
        yield event({**head, **costs_of(answer)})
    yield DONE
