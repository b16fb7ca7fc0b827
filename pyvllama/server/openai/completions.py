"""`/v1/completions`: texts gone on with as they are, without a chat template."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pyvllama.completion import Delta
from pyvllama.server.answer import Answer
from pyvllama.server.openai.answers import TextCompletion
from pyvllama.server.openai.choices_request import MAX_CHOICES
from pyvllama.server.openai.completion_request import CompletionRequest
from pyvllama.server.openai.costs import costs_of, timings_of
from pyvllama.server.openai.documents import streamed
from pyvllama.server.openai.errors import InvalidRequest
from pyvllama.server.openai.events import DONE, PING, PING_S, begin_stream, event, or_error, with_usage_null
from pyvllama.server.openai.requested import note_costs, read_options, served_model, text_of
from pyvllama.server.openai.text_pieces import TextPieces
from pyvllama.server.served_model import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["OpenAI"])
_ANSWERS = streamed(
    TextCompletion,
    "The texts.",
    "an object of the same shape for each piece, the last of each text has its finish_reason; then `[DONE]`. "
    "An error on the way is a last event with `error`.",
)


@router.post("/v1/completions", response_model=TextCompletion, responses=_ANSWERS)
async def create_completion(request: Request, body: CompletionRequest) -> Response:
    """Go on with a text, or with several."""
    prompts = body.prompts
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidRequest(f"n times the number of prompts must be at most {MAX_CHOICES}", "n")
    async with AsyncExitStack() as stack:
        served = await served_model(request, stack, body.model)
        options = await read_options(served, body.options())
        echoes = await asyncio.to_thread(_echoes, served, prompts) if body.echo else [""] * len(prompts)
        answers = [
            await stack.enter_async_context(
                await served.complete(
                    prompt,
                    options,
                    limits=request.app.state.image_limits,
                    reuse=body.reuse,
                    deadline_s=request.app.state.settings.deadline_s,
                )
            )
            for prompt in prompts
        ]
        note_costs(request, stack, *answers)
        pieces = TextPieces(
            served.name, served.model.tokenizer, options.n, echoes, with_logprobs=body.logprobs is not None
        )
        if body.stream:
            events = or_error(_events(answers, pieces, include_usage=body.include_usage))
            return begin_stream(events, stack)
        whole = pieces.whole([await answer.whole(request) for answer in answers])
        return JSONResponse({**whole, **costs_of(*answers)})


def _echoes(served: ServedModel, prompts: Sequence[str | list[int]]) -> list[str]:
    tokenizer = served.model.tokenizer
    return [prompt if isinstance(prompt, str) else text_of(tokenizer, prompt, "prompt") for prompt in prompts]


async def _events(answers: Sequence[Answer], pieces: TextPieces, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Pieces. The last one has the `timings`; `usage` only if it was asked for, in an object of its own."""
    n_open = pieces.n_choices
    if echoed := pieces.begin():
        yield _joined(echoed, include_usage)
    async with aclosing(_mixed(answers)) as batches:
        async for batch in batches:
            n_open -= sum(delta.finish_reason is not None for _, delta in batch)
            objects = [piece for prompt, delta in batch if (piece := pieces.take(prompt, delta))]
            if not n_open and not include_usage:
                objects[-1]["timings"] = timings_of(*answers)
            if objects or not batch:
                yield _joined(objects, include_usage) or PING
    if include_usage:
        yield event({**pieces.object([]), **costs_of(*answers)})
    yield DONE


def _joined(objects: list[dict[str, Any]], include_usage: bool) -> bytes:
    return b"".join(map(event, with_usage_null(objects) if include_usage else objects))


async def _mixed(answers: Sequence[Answer]) -> AsyncGenerator[list[tuple[int, Delta]], None]:
    """(which answer, its delta), as they come; none for a sign of life."""
    come: asyncio.Queue[tuple[int, list[Delta]] | Exception | None] = asyncio.Queue()

    async def listen(i: int) -> None:
        try:
            async for batch in answers[i].batches(PING_S):
                come.put_nowait((i, batch))
            come.put_nowait(None)
        except Exception as e:
            come.put_nowait(e)

    tasks = [asyncio.ensure_future(listen(i)) for i in range(len(answers))]
    try:
        n_open = len(answers)
        while n_open:
            what = await come.get()
            if isinstance(what, Exception):
                raise what
            if what is None:
                n_open -= 1
            else:
                yield [(what[0], delta) for delta in what[1]]
    finally:
        for task in tasks:
            task.cancel()
