"""`POST /api/generate`: one prompt, with the chat template around it or without."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pyvllama.chat_options import ChatOptions
from pyvllama.model import Model
from pyvllama.prompt import Prompt
from pyvllama.server.ollama.answers import AnswerShape
from pyvllama.server.ollama.errors import OllamaError
from pyvllama.server.ollama.messages import decode_images, prompt_messages
from pyvllama.server.ollama.options import sampling_options
from pyvllama.server.ollama.rendering import context_of, goes_on, render
from pyvllama.server.ollama.requested import load_or_unload, use_model
from pyvllama.server.ollama.responses import OllamaGenerateResponse
from pyvllama.server.ollama.route import OllamaRoute, json_response
from pyvllama.server.ollama.schema import GenerateRequest
from pyvllama.server.ollama.streams import deliver, streamed

__all__ = ["router"]

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)
_ANSWERS = streamed(
    OllamaGenerateResponse,
    "The answer; streamed: a line for each piece of it, the last one with `done` and what it cost.",
)


@router.post("/api/generate", response_model=OllamaGenerateResponse, responses=_ANSWERS)
async def generate(request: Request, body: GenerateRequest) -> Response:
    """Answer a prompt."""
    _refuse(body)
    shape = AnswerShape(body.model, is_chat=False)
    if not body.prompt and not body.images:
        return json_response(await load_or_unload(request, body, shape))
    async with AsyncExitStack() as stack:
        begun = await use_model(request, stack, body)
        model = begun.served.model
        prompt: str | Sequence[int]
        images: Sequence[Any]
        if body.raw:
            prompt = body.prompt or ""
            images = await asyncio.to_thread(decode_images, body.images or ())
        else:
            rendered = await asyncio.to_thread(_rendered, model, body)
            prompt, images = rendered.token_ids, [slot.source for slot in rendered.images]
        answer = await begun.served.complete(
            prompt,
            await asyncio.to_thread(ChatOptions.from_options, model.sampling_defaults, sampling_options(body)),
            images=images,
            limits=request.app.state.image_limits,
            deadline_s=request.app.state.settings.deadline_s,
        )

        def context(text: str) -> list[int] | None:
            return None if isinstance(prompt, str) else context_of(model, prompt, text)

        stream = body.stream is not False
        return await deliver(request, stack, begun, answer, shape, stream=stream, context=context)


def _refuse(body: GenerateRequest) -> None:
    if body.suffix:
        raise OllamaError(400, f'"{body.model:.200}" does not support insert (suffix): it was not trained to fill in')
    if body.template:
        raise OllamaError(
            400,
            "template is not supported (it would be in Go's language): the model's own is used; for another one send "
            "the finished prompt with raw: true",
        )
    if body.raw and (body.system or body.context):
        raise OllamaError(400, "raw mode does not support template, system, or context")


def _rendered(model: Model, body: GenerateRequest) -> Prompt:
    """The prompt in the chat template; behind what was said before, if the client sends that."""
    messages = prompt_messages(body.prompt or "", body.system, body.images or ())
    return goes_on(model, body.context, messages) if body.context else render(model, messages)
