"""Answers of Ollama's API, as its documentation and its Go types have them (api/types.go, version 0.24).

Fields that are None are left out, as Ollama leaves out what is empty. Durations are in nanoseconds.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from pyvllama.server.ollama.durations import rfc3339

__all__ = [
    "ErrorResponse",
    "ListedModel",
    "Logprob",
    "ModelDetails",
    "OllamaChatResponse",
    "OllamaGenerateResponse",
    "OllamaProgressResponse",
    "ProcessResponse",
    "Response",
    "RunningModel",
    "ShowResponse",
    "TagsResponse",
    "VersionResponse",
]

Time = Annotated[datetime, PlainSerializer(rfc3339, return_type=str)]


class Response(BaseModel):
    """What all answers have in common."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null", protected_namespaces=())


class ErrorResponse(BaseModel):
    """What went wrong, in words."""

    error: str


class TokenLogprob(Response):
    """A token and the log of its probability."""

    token: str
    logprob: float | None
    bytes: list[int] | None = None


class Logprob(TokenLogprob):
    """The token that was chosen, and the likeliest ones at its place."""

    top_logprobs: list[TokenLogprob] | None = None


class Metrics(Response):
    """What an answer cost; with its last piece."""

    total_duration: int | None = Field(default=None, description="From the request to the end of the answer.")
    load_duration: int | None = Field(default=None, description="Until the model was there.")
    image_encode_duration: int | None = Field(
        default=None, description="Encoding the pictures that were not known yet (ours: Ollama hides it)."
    )
    prompt_eval_count: int | None = Field(default=None, description="Tokens of the prompt; a picture is one.")
    prompt_eval_duration: int | None = Field(default=None, description="For those of them that were not known yet.")
    eval_count: int | None = Field(default=None, description="Tokens of the answer.")
    eval_duration: int | None = None


class Answer(Metrics):
    """What the answers of chat and generate have in common."""

    model: str
    created_at: Time
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    logprobs: list[Logprob] | None = None


class CalledFunction(Response):
    """A function and what it is called with."""

    index: int
    name: str
    arguments: dict[str, Any]


class CalledTool(Response):
    """A tool that the model wants called."""

    id: str
    function: CalledFunction


class AnswerMessage(Response):
    """A message of the model, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[CalledTool] | None = None


class OllamaChatResponse(Answer):
    """An answer of /api/chat, or a piece of it."""

    message: AnswerMessage


class OllamaGenerateResponse(Answer):
    """An answer of /api/generate, or a piece of it."""

    response: str
    context: list[int] | None = Field(
        default=None, description="Token ids of the conversation, to go on with. Deprecated."
    )


class ModelDetails(Response):
    """What kind of model it is."""

    parent_model: str = ""
    format: str = "gguf"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(Response):
    """A model that can be asked for."""

    name: str
    model: str
    modified_at: Time
    size: int = Field(description="Bytes of all files.")
    digest: str = Field(description="Tells models apart: of the files' names, sizes and times, not of their content.")
    details: ModelDetails


class TagsResponse(Response):
    """The models that can be asked for."""

    models: list[ListedModel]


class RunningModel(Response):
    """A model in memory."""

    name: str
    model: str
    size: int = Field(description="Bytes of memory.")
    digest: str
    details: ModelDetails
    expires_at: Time
    size_vram: int = Field(description="Bytes of it on a GPU, by the share of layers there.")
    context_length: int


class ProcessResponse(Response):
    """The models in memory."""

    models: list[RunningModel]


class TensorEntry(Response):
    """A tensor of a model's files."""

    name: str
    type: str
    shape: list[int] = Field(description="ggml's order: fastest first.")


class ShowResponse(Response):
    """What is in a model."""

    license: str | None = None
    modelfile: str
    parameters: str = Field(description="The model's own defaults, one a line.")
    template: str = Field(description="The chat template; Jinja, where Ollama's are Go's.")
    details: ModelDetails
    model_info: dict[str, Any] = Field(description="Metadata of the text model's file.")
    projector_info: dict[str, Any] = Field(description="Metadata of the mmproj.")
    tensors: list[TensorEntry] | None = Field(default=None, description="With verbose.")
    capabilities: list[str]
    modified_at: Time


class VersionResponse(Response):
    """The version of Ollama whose API this is, and who really answers."""

    version: str
    server: str


class OllamaProgressResponse(Response):
    """How far a download is."""

    status: str
    digest: str | None = Field(
        default=None, description="Of a file that is being downloaded: its name in the repository."
    )
    total: int | None = None
    completed: int | None = None
