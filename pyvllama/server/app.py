"""The application: routers, middlewares, error handlers, and the models' life from start to end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from pyvllama.errors import BackendError, VllamaError
from pyvllama.server import health, llama_server, page
from pyvllama.server.api_keys import ApiKeys
from pyvllama.server.body_limit import BodyLimit
from pyvllama.server.error_response import is_ollama_path
from pyvllama.server.host_check import HostCheck, OriginCheck
from pyvllama.server.image_policy import image_limits
from pyvllama.server.metrics import Metrics
from pyvllama.server.model_pool import ModelPool
from pyvllama.server.ollama import chat as ollama_chat
from pyvllama.server.ollama import generate as ollama_generate
from pyvllama.server.ollama import models as ollama_models
from pyvllama.server.ollama.errors import ollama_error
from pyvllama.server.openai import chat, completions, models, responses, unsupported
from pyvllama.server.openai.errors import openai_error
from pyvllama.server.pool_setup import make_pool
from pyvllama.server.request_log import RequestLog
from pyvllama.server.settings import Settings

__all__ = ["cors", "create_app"]

logger = logging.getLogger("pyvllama.server")

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    chat.router,
    completions.router,
    responses.router,
    models.router,
    unsupported.router,
    llama_server.router,
    ollama_chat.router,
    ollama_generate.router,
    ollama_models.router,
    page.router,
)


def create_app(settings: Settings, pool: ModelPool | None = None) -> FastAPI:
    """The server's application.

    `app.state` has `settings`, `pool` (ModelPool), `image_limits`, `metrics`, and `ready`, an asyncio.Event that is set
    once the default model is loaded; `failed` is set, and `failure` the VllamaError, if that is impossible.

    Args:
        settings: see `Settings`.
        pool: a ModelPool; its owner closes it. None: one of the settings, closed when the application stops.

    Raises:
        ModelNotFound, FormatError: there is no such model, or its files are damaged.
    """
    metrics = Metrics()
    app = FastAPI(
        title="pyvllama",
        version=metadata.version("pyvllama"),
        description="Llama 3.2 Vision behind OpenAI's and Ollama's APIs.",
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        middleware=[  # from the outside in
            Middleware(RequestLog, metrics=metrics, log_prompts=settings.log_prompts),
            Middleware(HostCheck, settings=settings),
            Middleware(OriginCheck, origins=settings.cors_origins),
            *cors(settings),
            Middleware(ApiKeys, keys=settings.api_keys),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        ],
        exception_handlers={
            RequestValidationError: _in_its_words,
            HTTPException: _http_error,
            VllamaError: _in_its_words,
        },
    )
    app.state.settings, app.state.metrics = settings, metrics
    app.state.owns_pool = pool is None
    app.state.pool = make_pool(settings, metrics.count_answer) if pool is None else pool
    app.state.image_limits = image_limits(settings)
    app.state.ready, app.state.failed, app.state.failure = asyncio.Event(), asyncio.Event(), None
    for router in ROUTERS:
        app.include_router(router)
    return app


def cors(settings: Settings) -> list[Middleware]:
    """What tells browsers which pages may ask. To be put before the keys: a browser's preflight bears none."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE", "HEAD", "OPTIONS"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    ]


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the default model beside answering /health; at the end let the pool go."""
    state = app.state
    loading = asyncio.create_task(_load(state))
    try:
        yield
    finally:
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
        if state.owns_pool:
            await state.pool.close(0.0)


async def _load(state: Any) -> None:
    try:
        async with state.pool.use(None):
            state.ready.set()
    except Exception as e:
        if not isinstance(e, VllamaError):
            logger.exception("the model could not be loaded")
        state.failure = e if isinstance(e, VllamaError) else BackendError(f"the model could not be loaded: {e!r}")
        state.failed.set()


async def _in_its_words(request: Request, error: Exception) -> JSONResponse:
    """As the API that was asked says it."""
    return ollama_error(error) if is_ollama_path(request.url.path) else openai_error(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own errors, in more words than it has for them."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    if status == 404 and error.detail == "Not Found":
        error = HTTPException(status, f"there is nothing at {request.method} {path}")
    elif status == 405:
        error = HTTPException(status, f"{path} is not asked by {request.method}", error.headers)
    return await _in_its_words(request, error)
