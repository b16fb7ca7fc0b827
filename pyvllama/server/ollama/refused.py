"""What of Ollama's API is not there, and what to do instead."""

from fastapi import APIRouter
from starlette.responses import Response

from pyvllama.server.ollama.errors import OllamaError
from pyvllama.server.ollama.route import OllamaRoute

__all__ = ["router"]

_EMBED = "this model makes no embeddings"
_CREATE = "models are not made here: convert a checkpoint or a fine-tune with `pyvllama convert`, then serve the files"
_INSTEAD = {  # (method, path) -> why, and what to do
    ("POST", "/api/embed"): _EMBED,
    ("POST", "/api/embeddings"): _EMBED,
    ("POST", "/api/create"): _CREATE,
    ("POST", "/api/blobs/{digest}"): _CREATE,
    ("HEAD", "/api/blobs/{digest}"): _CREATE,
    ("POST", "/api/copy"): "models are not copied here: `pyvllama serve --alias NAME` gives the model another name",
    ("POST", "/api/push"): "nothing is pushed from here: `pyvllama push` uploads a model to the Hub",
}

router = APIRouter(tags=["Ollama"], route_class=OllamaRoute)


def _refuse(method: str, path: str, instead: str) -> None:
    async def refuse() -> Response:
        raise OllamaError(501, f"{path.removesuffix('/{digest}')} is not supported: {instead}")

    router.add_api_route(path, refuse, methods=[method], include_in_schema=False)


for (_method, _path), _instead in _INSTEAD.items():
    _refuse(_method, _path, _instead)
