"""`/api/pull` and `/api/delete`: models come and go, where the server's owner lets clients do that."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from pyvllama.errors import Cancelled
from pyvllama.hub_client import list_files
from pyvllama.hub_models import parse_hub_name, select_pair
from pyvllama.inventory import find_items, remove_items
from pyvllama.server.answer_stream import AnswerStream
from pyvllama.server.ollama.errors import ERRORS, OllamaError, error_line
from pyvllama.server.ollama.names import find_card, hub_name, own_name
from pyvllama.server.ollama.pulling import Pull
from pyvllama.server.ollama.requested import card_named
from pyvllama.server.ollama.responses import OllamaProgressResponse
from pyvllama.server.ollama.route import OllamaRoute, json_response
from pyvllama.server.ollama.schema import DeleteRequest, PullRequest
from pyvllama.server.ollama.streams import NDJSON, line, streamed

__all__ = ["router"]

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)
_PROGRESS = streamed(OllamaProgressResponse, "How it ended; streamed: a line for each step on the way.")
_DELETED = {200: {"description": "It is deleted; the body is empty."}, **ERRORS}

_NOT_ALLOWED = (
    "clients may not fetch or delete models on this server: start it with --ollama to let them, or use "
    "`pyvllama pull` and `pyvllama rm` on its machine"
)


@router.post("/api/pull", response_model=OllamaProgressResponse, responses=_PROGRESS)
async def pull(request: Request, body: PullRequest) -> Response:
    """Fetch a model from the Hub. One that is here already and cannot be fetched anew is a success at once."""
    name, state = body.wanted, request.app.state
    card = find_card(await asyncio.to_thread(state.pool.cards), name) if name else None
    is_from_hub = card is None or (card.is_kept and parse_hub_name(own_name(name)) is not None)
    steps: AsyncGenerator[OllamaProgressResponse, None]
    if card is not None and not (is_from_hub and state.settings.manage_models):
        steps = _nothing_to_do()
    else:
        if not state.settings.manage_models:
            raise OllamaError(403, _NOT_ALLOWED)
        repo_id, quant = hub_name(name)
        listing = await asyncio.to_thread(list_files, repo_id)
        steps = Pull(repo_id, select_pair(listing.files, quant, where=repo_id)).steps()
    async with AsyncExitStack() as stack:
        if body.stream is not False:
            stack.push_async_callback(steps.aclose)
            return AnswerStream(_lines(steps), stack.pop_all(), NDJSON)
        return json_response(await _last(steps, request))


@router.delete("/api/delete", response_class=Response, responses=_DELETED)
async def delete(request: Request, body: DeleteRequest) -> Response:
    """Delete a model that lies in a cache of ours or the Hub's; it is unloaded before."""
    state = request.app.state
    if not state.settings.manage_models:
        raise OllamaError(403, _NOT_ALLOWED)
    card = await card_named(state.pool, body.wanted)
    if not card.is_kept:
        raise OllamaError(400, f"{card.name} is what the server was started with: its files are not the server's own")
    await state.pool.unload(card.name)
    await asyncio.to_thread(lambda: remove_items(find_items([card.name])))
    return Response()


async def _nothing_to_do() -> AsyncGenerator[OllamaProgressResponse, None]:
    yield OllamaProgressResponse(status="success")


async def _lines(steps: AsyncIterator[OllamaProgressResponse]) -> AsyncIterator[bytes]:
    try:
        async for step in steps:
            yield line(step)
    except Exception as e:
        yield error_line(e)


async def _last(steps: AsyncGenerator[OllamaProgressResponse, None], request: Request) -> OllamaProgressResponse:
    async with aclosing(steps):
        async for step in steps:
            latest = step
            if await request.is_disconnected():
                raise Cancelled("the client has gone")
    return latest
