"""A route of Ollama's API: it takes JSON, whatever the request calls it."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["OllamaRoute", "json_response"]


class OllamaRoute(APIRoute):
    """As Ollama, it reads any body as JSON: curl's `-d` calls it a form, many clients call it nothing.

    (A browser needs no leave to send a form to a foreign server; the application refuses requests of foreign web pages
    by their Origin, before they come here.)
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, told that the body is JSON."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            request.scope["headers"] = headers  # in place: others write into this scope, too
            return await handle(Request(request.scope, request.receive))

        return answer


def json_response(model: BaseModel) -> Response:
    """An answer as JSON; fields that are None are left out."""
    return Response(model.model_dump_json(exclude_none=True), media_type="application/json")
