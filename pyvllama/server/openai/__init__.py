"""OpenAI's API: chat completions, completions, responses, models."""

from fastapi import APIRouter

from pyvllama.server.openai import chat, completions, models, responses, unsupported

__all__ = ["router"]

router = APIRouter()
for _module in (chat, completions, responses, models, unsupported):
    router.include_router(_module.router)
