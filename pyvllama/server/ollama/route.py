"""A route of Ollama's API: it takes JSON whatever the request calls it, and fails in Ollama's shape."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pyvllama.server.ollama.errors import ollama_error

__all__ = ["OllamaRoute", "json_response"]


class OllamaRoute(APIRoute):
    """As Ollama, it reads any body as JSON: curl's `-d` calls it a form, many clients call it nothing.

    (A browser needs no leave to send a form to a foreign server; the application refuses requests of foreign web pages
    by their Origin, before they come here.)
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with what is said above around it."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                await request.body()  # here, so that what a middleware says of it arrives as it is
                headers = [(k, v) for k, v in request.scope["headers"] if k != b"content-type"]
                request.scope["headers"] = [*headers, (b"content-type", b"application/json")]
                request.__dict__.pop("_headers", None)
                return await handle(request)
            except (RequestValidationError, HTTPException) as e:
                return ollama_error(e)
            except Exception as e:
                return ollama_error(e)

        return answer


def json_response(model: BaseModel, status: int = 200) -> Response:
    """An answer as JSON; fields that are None are left out."""
    return Response(model.model_dump_json(exclude_none=True), status, media_type="application/json")
