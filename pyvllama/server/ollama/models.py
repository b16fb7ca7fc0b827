"""`/api/tags`, `/api/show`, `/api/ps`, `/api/version`: which models there are, and who answers."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from pyvllama.errors import VllamaError
from pyvllama.server.model_list import ModelCard
from pyvllama.server.model_pool import Loaded
from pyvllama.server.ollama import management, refused
from pyvllama.server.ollama.durations import FOREVER
from pyvllama.server.ollama.errors import ERRORS
from pyvllama.server.ollama.model_info import FAMILY, describe, details_of, digest_of
from pyvllama.server.ollama.names import displayed
from pyvllama.server.ollama.requested import card_named
from pyvllama.server.ollama.responses import (
    ListedModel,
    ModelDetails,
    ProcessResponse,
    RunningModel,
    ShowResponse,
    TagsResponse,
    VersionResponse,
)
from pyvllama.server.ollama.route import OllamaRoute, json_response
from pyvllama.server.ollama.schema import ShowRequest

__all__ = ["API_VERSION", "router"]

API_VERSION = "0.24.0"
"""The version of Ollama whose API this is: the last one that ran this model. Clients compare it with what they need
(0.6.4 for what `/api/show` says, 0.12.11 for logprobs), so it is three numbers and nothing else."""

logger = logging.getLogger("pyvllama.server")

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)


@router.head("/", include_in_schema=False)
async def alive() -> Response:
    """What `ollama` and many apps ask first."""
    return PlainTextResponse("")


@router.get("/api/version", response_model=VersionResponse, responses=ERRORS)
@router.head("/api/version", include_in_schema=False)
async def version() -> Response:
    """The version of Ollama whose API this is."""
    return json_response(VersionResponse(version=API_VERSION, server=f"pyvllama {metadata.version('pyvllama')}"))


@router.get("/api/tags", response_model=TagsResponse, responses=ERRORS)
@router.head("/api/tags", include_in_schema=False)
async def tags(request: Request) -> Response:
    """The models that can be asked for, the one changed last first; aliases stand for themselves."""
    state = request.app.state

    def listed() -> list[ListedModel]:
        cards: Sequence[ModelCard] = state.pool.cards()
        found = [model for card in cards for model in _listed(card, state.settings.aliases)]
        return sorted(found, key=lambda model: model.modified_at, reverse=True)

    return json_response(TagsResponse(models=await asyncio.to_thread(listed)))


@router.post("/api/show", response_model=ShowResponse, responses=ERRORS)
async def show(request: Request, body: ShowRequest) -> Response:
    """What is in a model; it is not loaded for that."""
    card = await card_named(request.app.state.pool, body.wanted)
    found = await asyncio.to_thread(describe, card.pair, card.name, verbose=bool(body.verbose))
    return await asyncio.to_thread(json_response, found)  # verbose: a vocabulary of megabytes


@router.get("/api/ps", response_model=ProcessResponse, responses=ERRORS)
async def ps(request: Request) -> Response:
    """The models in memory."""
    loaded: Sequence[Loaded] = request.app.state.pool.loaded()
    running = [await asyncio.to_thread(_running, model) for model in loaded]
    return json_response(ProcessResponse(models=running))


def _listed(card: ModelCard, aliases: Sequence[str]) -> list[ListedModel]:
    try:
        details = details_of(card.pair)
    except (OSError, VllamaError) as e:
        logger.warning("%s is left out of the list: %s", card.name, e)
        return []
    common: dict[str, Any] = {
        "modified_at": card.modified,
        "size": card.n_bytes,
        "digest": digest_of(card.pair),
        "details": details,
    }
    names = dict.fromkeys(map(displayed, (card.name, *(alias for alias in card.aliases if alias in aliases))))
    return [ListedModel(name=name, model=name, **common) for name in names]


def _running(loaded: Loaded) -> RunningModel:
    card, served = loaded.card, loaded.served
    name = displayed(card.name)
    return RunningModel(
        name=name,
        model=name,
        size=card.n_bytes,
        digest=digest_of(card.pair),
        details=_details(card),
        expires_at=loaded.expires_at or datetime.now(timezone.utc) + FOREVER,
        size_vram=card.n_bytes if served.model.placement.is_all_on_gpus else served.gpu_bytes,  # as Ollama has it
        context_length=served.n_ctx,
    )


def _details(card: ModelCard) -> ModelDetails:
    """Of a model in memory, whatever has become of its files."""
    try:
        return details_of(card.pair)
    except (OSError, VllamaError):
        return ModelDetails(family=FAMILY, families=[FAMILY], parameter_size="", quantization_level=card.type or "")


router.include_router(management.router)
router.include_router(refused.router)
