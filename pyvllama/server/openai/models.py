"""`/v1/models`: what can be asked for."""

import asyncio
from typing import Any

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse, Response

from pyvllama.server.model_list import ModelCard as Card
from pyvllama.server.openai.answers import ModelCard, ModelList
from pyvllama.server.openai.errors import ERRORS

__all__ = ["router"]

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def list_models(request: Request) -> Response:
    """All models, the one that answers by default first."""
    cards = await asyncio.to_thread(request.app.state.pool.cards)
    return JSONResponse({"object": "list", "data": [_object(card) for card in cards]})


@router.get("/v1/models/{model:path}", response_model=ModelCard, responses=ERRORS)
async def retrieve_model(
    request: Request, model: str = Path(min_length=1, description="Its name, or another that it answers to.")
) -> Response:
    """One of them."""
    return JSONResponse(_object(await asyncio.to_thread(request.app.state.pool.card, model)))


def _object(card: Card) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": int(card.modified.timestamp()),
        "owned_by": "pyvllama",
        "meta": {"size": card.n_bytes, "type": card.type, "aliases": list(card.aliases)},
    }
