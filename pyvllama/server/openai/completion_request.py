"""The body of `/v1/completions`."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from pyvllama.server.openai.choices_request import MAX_CHOICES, ChoicesRequest
from pyvllama.server.openai.wire import AS_WHOLE, JSONObject, MaxTokens

__all__ = ["CompletionRequest"]

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), AS_WHOLE]
_Tokens = Annotated[list[_TokenId], Field(min_length=1)]
_Strings = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
_TokenLists = Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_CHOICES)]


class CompletionRequest(ChoicesRequest):
    """A text to be gone on with, as it is: no chat template."""

    prompt: str | _Tokens | _Strings | _TokenLists = Field(
        description="Text (special tokens in it count as such), its token ids, or several of either."
    )
    max_tokens: MaxTokens = Field(
        None, description=f"Tokens to generate at most, {_DEFAULT_MAX_TOKENS} if null; -1: until the context is full."
    )
    logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = Field(
        None, description="Log-probabilities of the answer's tokens and of so many of the likeliest at each place."
    )
    echo: bool | None = Field(None, description="Begin the answer with the prompt. Not together with logprobs.")
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES), AS_WHOLE] | None = Field(
        None, description="No other value than that of n: all answers are given."
    )
    suffix: str | None = Field(
        None, description="Refused: Llama 3.2 cannot fill in a middle.", json_schema_extra={"maxLength": 0}
    )
    json_schema: JSONObject | None = Field(
        None, description="A JSON Schema that the answer follows. (llama-server's; OpenAI's name is response_format.)"
    )

    @field_validator("echo")
    @classmethod
    def _without_logprobs(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("logprobs") is not None:
            raise ValueError("the log-probabilities of a prompt are not kept: ask for echo or for logprobs, not both")
        return value

    @field_validator("best_of")
    @classmethod
    def _all_of_them(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise ValueError("answers are not ranked: it must equal n, or be left away")
        return value

    @field_validator("suffix")
    @classmethod
    def _nothing(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("Llama 3.2 cannot fill in a middle: leave it away")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if is_one else list(prompt)

    def options(self) -> dict[str, Any]:
        """For `ChatOptions.from_options`."""
        limit = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        options = {
            **self.choices(),
            "max_tokens": None if limit == -1 else limit,
            "logprobs": self.logprobs is not None,
            "top_logprobs": self.logprobs,
        }
        if self.json_schema is not None and self.response_format is None:
            options["response_format"] = {"type": "json_object", "schema": self.json_schema}
        return options
