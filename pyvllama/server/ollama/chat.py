"""`POST /api/chat`."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pyvllama.chat_options import ChatOptions
from pyvllama.grammar import constraint_of_tools
from pyvllama.server.answer import Answer
from pyvllama.server.ollama.answers import AnswerShape
from pyvllama.server.ollama.messages import openai_messages, openai_tools
from pyvllama.server.ollama.options import sampling_options
from pyvllama.server.ollama.rendering import begun_answer, is_begun
from pyvllama.server.ollama.requested import load_or_unload, use_model
from pyvllama.server.ollama.responses import OllamaChatResponse
from pyvllama.server.ollama.route import OllamaRoute, json_response
from pyvllama.server.ollama.schema import ChatRequest
from pyvllama.server.ollama.streams import deliver, streamed
from pyvllama.server.served_model import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)
_ANSWERS = streamed(
    OllamaChatResponse, "The answer; streamed: a line for each piece of it, the last one with `done` and what it cost."
)


@router.post("/api/chat", response_model=OllamaChatResponse, responses=_ANSWERS)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation, with pictures in it or without."""
    shape = AnswerShape(body.model, is_chat=True)
    if not body.messages:
        return json_response(await load_or_unload(request, body, shape))
    messages = await asyncio.to_thread(openai_messages, body.messages)  # pictures can be large
    async with AsyncExitStack() as stack:
        begun = await use_model(request, stack, body)
        answer = await _answer(request, body, begun.served, messages)
        return await deliver(request, stack, begun, answer, shape, stream=body.stream is not False)


async def _answer(request: Request, body: ChatRequest, served: ServedModel, messages: list[dict[str, Any]]) -> Answer:
    """The answer; where the client has begun it, its rest."""
    state, may_drop = request.app.state, body.truncate is not False
    options = await asyncio.to_thread(_options, served, body)  # a schema's grammar can take a while
    limits, deadline_s = state.image_limits, state.settings.deadline_s
    if not is_begun(messages):
        return await served.chat(messages, options, limits=limits, deadline_s=deadline_s, context_shift=may_drop)
    prompt = await asyncio.to_thread(begun_answer, served.model, messages, options, served.n_ctx, may_drop=may_drop)
    images = [slot.source for slot in prompt.images]
    return await served.complete(prompt.token_ids, options, images=images, limits=limits, deadline_s=deadline_s)


def _options(served: ServedModel, body: ChatRequest) -> ChatOptions:
    """Beside a format the tools are shown to the model, but the format is what the answer has: so does Ollama."""
    found, tools = sampling_options(body), openai_tools(body.tools)
    if "response_format" not in found:
        return ChatOptions.from_options(served.model.sampling_defaults, {**found, "tools": tools})
    constraint_of_tools(tools, None)  # they are to be right all the same
    return replace(ChatOptions.from_options(served.model.sampling_defaults, found), tools=tools)
