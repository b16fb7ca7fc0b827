"""llama-cpp-python's server (`llama_cpp.server`) with models that see.

On the command line, with all options of `python -m llama_cpp.server`; `--clip_model_path` is the mmproj file, left out
it is the one that belongs to the text file::

    python -m pyvllama.integrations.llama_cpp_server --model llama-3.2-vision-Q4_K_M.gguf --n_ctx 4096

`--model` takes whatever `pyvllama.load` takes, `user/repo:QUANT` too (instead of `--hf_model_repo_id`).

Clients send images as OpenAI's do, by data: URI or public http(s) address. Needs the extra `llama-cpp-server`.
"""

import functools
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import llama_cpp.server.__main__ as server_main
import llama_cpp.server.app as server_app
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from llama_cpp.server.model import LlamaProxy

from pyvllama._runtime import llama_cpp
from pyvllama.errors import ImageError, PromptError
from pyvllama.image.limits import ImageLimits
from pyvllama.image.public_address import why_not_public
from pyvllama.integrations.llama_cpp_python import Llama
from pyvllama.server.error_response import error_response

__all__ = ["create_app", "main"]


# a client has no business in our files or network
_LIMITS = ImageLimits(allow_files=False, check_address=why_not_public)


class _BadRequest(HTTPException):
    """The server's routes turn every exception into a 500 but this kind."""


async def _tell(_request: Any, refused: Exception) -> JSONResponse:
    return error_response("/v1/", 400, str(refused.__cause__), param="messages")


class _Served(Llama):
    def create_chat_completion(self, *args: Any, **options: Any) -> Any:
        try:
            return super().create_chat_completion(*args, **options)
        except (ImageError, PromptError) as e:
            if options.get("stream"):  # the server has sent its 200 before it asks the model: the stream just breaks
                raise
            raise _BadRequest(400, str(e)) from e


class _Proxy(LlamaProxy):  # type: ignore[misc]  # llama_cpp is not looked into
    """Loads models as llama-cpp-python's does, and gives them eyes."""

    @staticmethod
    def load_llama_from_model_settings(settings: Any) -> Any:
        # The original turns some forty settings into arguments of llama_cpp.Llama. It runs as it is, with another
        # Llama under that name; llama_cpp itself stays untouched.
        class Seeing(_Served):
            __init__ = functools.partialmethod(
                Llama.__init__, mmproj_path=settings.clip_model_path, image_limits=_LIMITS
            )

        original = LlamaProxy.load_llama_from_model_settings
        names = {**original.__globals__, "llama_cpp": SimpleNamespace(**{**vars(llama_cpp), "Llama": Seeing})}
        return FunctionType(original.__code__, names)(settings)


def create_app(*args: Any, **options: Any) -> Any:
    """llama_cpp.server.app.create_app, same arguments, with models that see. Returns the FastAPI application.

    A picture that is refused, or a chat that makes no prompt, is the client's fault: 400 instead of 500. (Not so where
    the answer is streamed: the server begins it before it looks at the request.)
    """
    with patch.object(server_app, "LlamaProxy", _Proxy):
        app = server_app.create_app(*args, **options)
    app.add_exception_handler(_BadRequest, _tell)
    return app


def main() -> None:
    """`python -m llama_cpp.server`, same command line, with models that see."""
    with patch.object(server_main, "create_app", create_app):
        server_main.main()


if __name__ == "__main__":
    main()
