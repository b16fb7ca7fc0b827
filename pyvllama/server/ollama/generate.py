"""`POST /api/generate`: one prompt, with the chat template around it or without."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pyvllama.chat_options import ChatOptions
from pyvllama.model import Model
from pyvllama.prompt import Prompt, build_prompt
from pyvllama.server.ollama.answers import AnswerShape
from pyvllama.server.ollama.errors import OllamaError
from pyvllama.server.ollama.messages import decode_image, prompt_messages
from pyvllama.server.ollama.options import sampling_options
from pyvllama.server.ollama.requested import load_or_unload, use_model
from pyvllama.server.ollama.responses import GenerateResponse
from pyvllama.server.ollama.route import OllamaRoute, json_response
from pyvllama.server.ollama.schema import GenerateRequest
from pyvllama.server.ollama.streams import deliver, streamed

__all__ = ["router"]

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)
_ANSWERS = streamed(
    GenerateResponse, "The answer; streamed: a line for each piece of it, the last one with `done` and what it cost."
)
_EARLIER = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})
_END_OF_TURN = "<|eot_id|>"


@router.post("/api/generate", response_model=GenerateResponse, responses=_ANSWERS)
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
            images = [decode_image(image, f"images[{i}]") for i, image in enumerate(body.images or ())]
        else:
            rendered = await asyncio.to_thread(_rendered, model, body)
            prompt, images = rendered.token_ids, [slot.source for slot in rendered.images]
        answer = await begun.served.complete(
            prompt,
            ChatOptions.from_options(model.sampling_defaults, sampling_options(body)),
            images=images,
            limits=request.app.state.image_limits,
            deadline_s=request.app.state.settings.deadline_s,
        )

        def context_of(text: str) -> list[int] | None:
            return None if isinstance(prompt, str) else _context(model, prompt, text)

        stream = body.stream is not False
        return await deliver(request, stack, begun, answer, shape, stream=stream, context_of=context_of)


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
    if not body.context:
        return _prompt(model, messages)
    before = [token for token in body.context if token != model.image_token]
    opening = _prompt(model, _EARLIER, add_generation_prompt=False).token_ids
    both = _prompt(model, [*_EARLIER, *messages])
    n = len(opening) if both.token_ids[: len(opening)] == opening else 0
    moved = tuple(replace(slot, position=slot.position - n + len(before)) for slot in both.images)
    return Prompt((*before, *both.token_ids[n:]), moved)


def _prompt(model: Model, messages: Sequence[Any], *, add_generation_prompt: bool = True) -> Prompt:
    return build_prompt(
        messages,
        model.template,
        model.tokenizer,
        image_token_id=model.image_token,
        add_generation_prompt=add_generation_prompt,
    )


def _context(model: Model, prompt: Sequence[int], answer: str) -> list[int]:
    """The conversation as token ids, without its pictures: who goes on with it talks about what was said of them."""
    tokenizer = model.tokenizer
    end = tokenizer.special_tokens.get(_END_OF_TURN, tokenizer.eos)
    ids = [*prompt, *tokenizer.tokenize(answer), *([] if end is None else [end])]
    return [token for token in ids if token != model.image_token]
