"""/health and /metrics, as llama-server has them."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pyvllama.server.error_response import error_response
from pyvllama.server.metrics import CONTENT_TYPE

__all__ = ["router"]

router = APIRouter(tags=["server"])


@router.get("/health", responses={503: {"description": "It is not loaded yet."}})
@router.get("/v1/health", include_in_schema=False)
async def health(request: Request) -> JSONResponse:
    """Whether the default model is loaded: 200 `{"status": "ok"}`, or 503 while it is not. Needs no API key."""
    if not request.app.state.ready.is_set():
        return error_response("/health", 503, "Loading model", kind="unavailable_error", code=503, retry_after_s=1)
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(request.app.state.metrics.as_text(request.app.state.pool.loaded()), media_type=CONTENT_TYPE)
