"""Answers on their way: line by line as NDJSON, or whole."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from pyvllama.server.answer import Answer
from pyvllama.server.answer_stream import AnswerStream
from pyvllama.server.ollama.answers import AnswerShape
from pyvllama.server.ollama.errors import ERRORS, error_line
from pyvllama.server.ollama.requested import Begun
from pyvllama.server.ollama.route import json_response

__all__ = ["NDJSON", "deliver", "line", "streamed"]

NDJSON = "application/x-ndjson"

ContextOf = Callable[[str], list[int] | None]
"""From the answer's text to the token ids that its conversation can go on with."""


def streamed(model: type[BaseModel], description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a JSON object, or streams objects of the same shape.

    Args:
        model: the shape; its name must be the only one of its kind in the document, which bears OpenAI's shapes, too.
        description: of both.
    """
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {NDJSON: {"schema": schema}}
    return {200: {"model": model, "description": description, "content": content}, **ERRORS}


def line(model: BaseModel) -> bytes:
    """A line of a stream."""
    return model.model_dump_json(exclude_none=True).encode() + b"\n"


async def deliver(
    request: Request,
    stack: AsyncExitStack,
    begun: Begun,
    answer: Answer,
    shape: AnswerShape,
    *,
    stream: bool,
    context: ContextOf = lambda _: None,
) -> Response:
    """The response.

    Args:
        request: whose client waits; when it goes away, the answer is cancelled.
        stack: holds the model; it takes the answer, too, and goes with the stream if there is one.
        begun: of `use_model`.
        answer: not begun to be read.
        shape: what its pieces look like.
        stream: line by line.
        context: for the last line.

    Raises:
        What the answer raises, unless it is streamed: then that is its last line.
    """
    await stack.enter_async_context(answer)
    if stream:
        return AnswerStream(_lines(begun, answer, shape, context), stack.pop_all(), NDJSON)
    completion = answer.completion.whole(await answer.whole(request))
    text = completion["choices"][0]["message"]["content"] or ""
    return json_response(shape.whole(completion, begun.costs(answer), context(text)))


async def _lines(begun: Begun, answer: Answer, shape: AnswerShape, context: ContextOf) -> AsyncIterator[bytes]:
    said: list[str] = []
    reason = "stop"
    try:
        async for batch in answer.batches():
            lines = []
            for chunk in (chunk for delta in batch for chunk in answer.completion.chunks_of(delta)):
                choice = chunk["choices"][0]
                said.append(choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
                if (piece := shape.piece(chunk)) is not None:
                    lines.append(line(piece))
            if lines:
                yield b"".join(lines)
        yield line(shape.last(reason, begun.costs(answer), context("".join(said))))
    except Exception as e:
        yield error_line(e)
