"""What OpenAI and llama-server have and a Llama 3.2 Vision does not: refused by name instead of with a bare 404."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pyvllama.server.openai.errors import InvalidRequest, openai_error

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_WHY = {
    "embeddings": "this model answers with text: it makes no embeddings",
    "audio": "this model neither hears nor speaks",
    "images": "this model sees pictures and makes none: send them to /v1/chat/completions",
    "moderations": "this model moderates nothing; Llama Guard, served here, does by chat",
    "rerank": "this model answers with text: it ranks nothing",
    "infill": "this model cannot fill in a middle",
    "kept": "nothing is kept here: send the whole conversation to /v1/responses",
}
_ADDRESSES = {
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/embedding": "embeddings",
    "/v1/audio/speech": "audio",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
    "/v1/images/generations": "images",
    "/v1/images/edits": "images",
    "/v1/images/variations": "images",
    "/v1/moderations": "moderations",
    "/v1/rerank": "rerank",
    "/v1/reranking": "rerank",
    "/rerank": "rerank",
    "/reranking": "rerank",
    "/infill": "infill",
    "/v1/conversations": "kept",
}


async def _refuse(request: Request) -> Response:
    why = _WHY[_ADDRESSES[request.url.path]]
    return openai_error(InvalidRequest(why, status=501))


for _address in _ADDRESSES:
    router.add_api_route(_address, _refuse, methods=["POST"])


@router.api_route("/v1/responses/{response_id}", methods=["GET", "DELETE"])
async def kept_response(response_id: str) -> Response:
    """A response of before."""
    return openai_error(InvalidRequest(_WHY["kept"], "response_id", status=404))
