"""llama-server's addresses beside OpenAI's: `/props`, `/tokenize`, `/detokenize`, `/apply-template`.

Names, fields and answers as llama.cpp's tools/server/README.md has them; `model` is ours, for a server with several.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from pyvllama.model import Model
from pyvllama.prompt import build_prompt
from pyvllama.server.openai.chat_request import ChatMessage, read_conversation
from pyvllama.server.openai.errors import ERRORS
from pyvllama.server.openai.requested import check_tokens, served_model, text_of
from pyvllama.server.openai.tools import Tool
from pyvllama.server.openai.wire import AS_WHOLE, Answered, JSONObject, Said, as_json
from pyvllama.tokenizer import IMAGE_TOKEN, Tokenizer

__all__ = ["router"]

router = APIRouter(tags=["llama-server"])

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), AS_WHOLE]
_MODEL = Field(None, description="A name of `/v1/models`; without it the model that is served.")


class TokenizeRequest(Said):
    """A text to be cut into tokens."""

    content: str | list[str | TokenId] = Field(description="Text, or pieces of text and tokens mixed.")
    add_special: bool = Field(False, description="Begin with the token that every prompt begins with.")
    parse_special: bool = Field(True, description="Whether the text of a special token becomes that token.")
    with_pieces: bool = Field(False, description="Give the text of each token, too.")
    model: str | None = _MODEL


class TokenPiece(Answered):
    """A token and its text; its bytes where they are no text."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(Answered):
    """The tokens of a text."""

    tokens: list[int] | list[TokenPiece]


class DetokenizeRequest(Said):
    """Tokens to be made text."""

    tokens: list[TokenId]
    model: str | None = _MODEL


class DetokenizeAnswer(Answered):
    """The text of tokens."""

    content: str


class TemplateRequest(Said):
    """A conversation to be written out."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = None
    model: str | None = _MODEL


class TemplateAnswer(Answered):
    """The text that the model would be given."""

    prompt: str


class GenerationSettings(Answered):
    """What a request has unless it says otherwise."""

    n_ctx: int
    params: JSONObject


class Modalities(Answered):
    """What a model takes beside text."""

    vision: bool
    audio: bool


class Props(Answered):
    """About the server and a model."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str = Field(description="The text file's name, without its directory.")
    chat_template: str
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str


@router.get("/props", response_model=Props, responses=ERRORS)
async def props(
    request: Request,
    model: str | None = Query(None, description="A name of `/v1/models`; without it the model that is served."),
) -> Response:
    """About the server and a model."""
    async with AsyncExitStack() as stack:
        served = await served_model(request, stack, model)
        tokenizer, defaults = served.model.tokenizer, served.model.sampling_defaults
        settings = {
            "n_predict": -1 if defaults.max_tokens is None else defaults.max_tokens,
            "seed": 2**32 - 1 if defaults.seed is None else defaults.seed,  # llama.cpp's word for a random one
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
            "min_p": defaults.min_p,
            "repeat_last_n": defaults.penalty_last_n,
            "repeat_penalty": defaults.repeat_penalty,
            "presence_penalty": defaults.presence_penalty,
            "frequency_penalty": defaults.frequency_penalty,
            "stop": list(defaults.stop),
        }
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": served.n_ctx, "params": settings},
                "total_slots": served.n_slots,
                "model_alias": served.name,
                "model_path": served.model.text_path.name,
                "chat_template": served.model.template.source,
                "modalities": {"vision": True, "audio": False},
                "bos_token": "" if tokenizer.bos is None else text_of(tokenizer, [tokenizer.bos], "bos"),
                "eos_token": "" if tokenizer.eos is None else text_of(tokenizer, [tokenizer.eos], "eos"),
                "build_info": f"pyvllama {metadata.version('pyvllama')}",
            }
        )


@router.post("/tokenize", response_model=TokenizeAnswer, responses=ERRORS)
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """A text to tokens."""
    async with AsyncExitStack() as stack:
        tokenizer = (await served_model(request, stack, body.model)).model.tokenizer
        tokens = await asyncio.to_thread(_tokens, tokenizer, body)
        if not body.with_pieces:
            return JSONResponse({"tokens": tokens})
        return JSONResponse({"tokens": [{"id": token, "piece": _piece(tokenizer, token)} for token in tokens]})


@router.post("/detokenize", response_model=DetokenizeAnswer, responses=ERRORS)
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Tokens to text; special tokens as their text."""
    async with AsyncExitStack() as stack:
        tokenizer = (await served_model(request, stack, body.model)).model.tokenizer
        return JSONResponse({"content": await asyncio.to_thread(text_of, tokenizer, body.tokens, "tokens")})


@router.post("/apply-template", response_model=TemplateAnswer, responses=ERRORS)
async def apply_template(request: Request, body: TemplateRequest) -> Response:
    """A conversation as the text that the model would be given; a picture as `<|image|>`. Nothing is computed."""
    async with AsyncExitStack() as stack:
        served = await served_model(request, stack, body.model)
        tools = [as_json(tool) for tool in body.tools or ()] or None
        prompt = await asyncio.to_thread(_written, served.model, read_conversation(body.messages), tools)
        return JSONResponse({"prompt": prompt})


def _written(model: Model, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
    """What the prompt's tokens spell: just what the model would see."""
    prompt = build_prompt(messages, model.template, model.tokenizer, image_token_id=model.image_token, tools=tools)
    pieces = [
        IMAGE_TOKEN.encode() if token == model.image_token else model.tokenizer.piece(token, special=True)
        for token in prompt.token_ids
    ]
    return b"".join(pieces).decode(errors="replace")


def _tokens(tokenizer: Tokenizer, body: TokenizeRequest) -> list[int]:
    tokens = [tokenizer.bos] if body.add_special and tokenizer.bos is not None else []
    for part in [body.content] if isinstance(body.content, str) else body.content:
        if isinstance(part, str):
            tokens += tokenizer.tokenize(part, parse_special=body.parse_special)
        else:
            check_tokens(tokenizer, [part], "content")
            tokens.append(part)
    return tokens


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    piece = tokenizer.piece(token, special=True)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
