"""What the chat and completion routes answer, for the OpenAPI document. `pyvllama.completion` makes these objects."""

from typing import Literal

from pydantic import Field

from pyvllama.server.openai.wire import Answered

__all__ = [
    "ChatChunk",
    "ChatCompletion",
    "LogprobEntry",
    "ModelCard",
    "ModelList",
    "TextCompletion",
    "Timings",
    "TokenLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class CachedTokens(Answered):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="Those that were known from an earlier request.")


class Usage(Answered):
    """Tokens of a completion; an image is one prompt token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(Answered):
    """Where the time went, as llama-server says it; and the time of the pictures."""

    image_encode_ms: float = Field(description="Encoding of the pictures that were not known; 0 without pictures.")
    image_cached: int = Field(description="Pictures that were known from an earlier request.")
    cache_n: int = Field(description="Prompt tokens that were known from an earlier request.")
    prompt_n: int = Field(description="Prompt tokens that were computed.")
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int = Field(description="Tokens that were generated.")
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    draft_n: int | None = Field(None, description="Tokens that a draft guessed, where there is one.")
    draft_n_accepted: int | None = Field(None, description="Those of them that the model says, too.")


class TokenLogprob(Answered):
    """A token."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobEntry(TokenLogprob):
    """A token of the answer, and what could have stood in its place."""

    top_logprobs: list[TokenLogprob]


class Logprobs(Answered):
    """Log-probabilities of an answer's tokens."""

    content: list[LogprobEntry]


class CalledFunction(Answered):
    """A function and its arguments, a JSON object as text."""

    name: str
    arguments: str


class CalledTool(Answered):
    """A call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Answered):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[CalledTool] = Field(default_factory=list)


class ChatChoice(Answered):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None


class ChatCompletion(Answered):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings
    dropped_turns: int | None = Field(None, description="With context_shift: how many turns were left away.")


class CalledToolPiece(CalledTool):
    """A call, in a stream; it comes in one piece."""

    index: int


class MessagePiece(Answered):
    """What has come since the last piece."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CalledToolPiece] = Field(default_factory=list)


class ChunkChoice(Answered):
    """A piece of one of the answers."""

    index: int
    delta: MessagePiece
    finish_reason: FinishReason | None
    logprobs: Logprobs | None


class ChatChunk(Answered):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, description="With stream_options.include_usage, in the last chunk.")
    timings: Timings | None = Field(None, description="In the last chunk.")


class TextLogprobs(Answered):
    """Log-probabilities of an answer's tokens, in the old shape: four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answered):
    """One of the answers, or a piece of it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: TextLogprobs | None


class TextCompletion(Answered):
    """What follows a text; in a stream the pieces have this shape, too."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class ModelCard(Answered):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answered):
    """All of them, the one that answers by default first."""

    object: Literal["list"]
    data: list[ModelCard]
