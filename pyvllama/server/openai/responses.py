"""`/v1/responses`: nothing is kept, a conversation is sent whole each time."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pyvllama.chat_options import ChatOptions
from pyvllama.server.answer import Answer
from pyvllama.server.openai.chat import chat_chunks
from pyvllama.server.openai.costs import costs_of
from pyvllama.server.openai.documents import streamed
from pyvllama.server.openai.errors import error_object
from pyvllama.server.openai.events import PING, begin_stream, event, log_unless_ours
from pyvllama.server.openai.requested import begin_chat, served_model
from pyvllama.server.openai.response_events import ResponseEvents
from pyvllama.server.openai.response_objects import ResponseEvent, ResponseObject
from pyvllama.server.openai.response_request import ResponseRequest
from pyvllama.server.openai.wire import as_json

__all__ = ["router"]

router = APIRouter(tags=["OpenAI"])
_ANSWERS = streamed(
    ResponseEvent,
    "The response.",
    "OpenAI's events, from `response.created` to `response.completed`, `response.incomplete` or `response.failed`.",
    ends_with_done=False,
)


@router.post("/v1/responses", response_model=ResponseObject, responses=_ANSWERS)
async def create_response(request: Request, body: ResponseRequest) -> Response:
    """Answer an input: text, pictures, answers of functions."""
    messages = body.conversation_messages()
    async with AsyncExitStack() as stack:
        served = await served_model(request, stack, body.model)
        shift = body.truncation == "auto"
        answer = await begin_chat(request, stack, served, body, messages, body.options(), context_shift=shift)
        asked = {"model": served.name, **_asked(body, answer.options)}
        made = ResponseEvents(asked, with_logprobs=body.with_logprobs)
        if body.stream:
            return begin_stream(_events(answer, made), stack)
        for delta in await answer.whole(request):
            for chunk in answer.completion.chunks_of(delta):
                made.take(chunk)
        made.end(**costs_of(answer))
        return JSONResponse(made.response)


async def _events(answer: Answer, made: ResponseEvents) -> AsyncGenerator[bytes, None]:
    try:
        yield _joined(made.begin())
        async for chunks in chat_chunks(answer):
            events = [item for chunk in chunks for item in made.take(chunk)]
            if events or not chunks:
                yield _joined(events) or PING
        yield _joined(made.end(**costs_of(answer)))
    except Exception as e:
        log_unless_ours(e)
        yield _joined(made.fail(error_object(e)["message"]))


def _joined(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event(item, item["type"]) for item in events)


def _asked(body: ResponseRequest, options: ChatOptions) -> dict[str, Any]:
    """What a response says of its request."""
    params = options.params
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": None if body.max_output_tokens == -1 else body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": params.temperature,
        "text": {"format": {"type": "text"}, **(as_json(body.text) if body.text else {})},
        "tool_choice": (choice if isinstance(choice, str) else as_json(choice)) if choice else "auto",
        "tools": [{"parameters": None, "strict": None, **as_json(tool)} for tool in body.tools or ()],
        "top_logprobs": params.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
    }
