"""What all objects of the OpenAI API share: how strictly a request is read, and fields that several requests have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "AS_WHOLE",
    "Answered",
    "Biases",
    "Count",
    "JSONObject",
    "MaxTokens",
    "Said",
    "SamplingFields",
    "Stop",
    "Text",
    "as_json",
    "kept_seed",
]

_N_SEEDS = 2**32 - 1  # llama.cpp's seeds; the last one is its word for "another one each time"
_INT32 = 2**31 - 1
_MAX_SEED = 10**19  # OpenAI's 64 bits, also as programs write them that know floats only: 9223372036854776000


class Said(BaseModel):
    """A part of a request: nothing is converted, fields that we do not know are ignored, as OpenAI does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Answered(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="allow")


def _whole(value: Any) -> Any:
    """Some languages write all numbers with a point: 64.0 is a whole number, in JSON Schema too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


AS_WHOLE = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=1, le=_INT32), AS_WHOLE]
MaxTokens = Count | Annotated[Literal[-1], AS_WHOLE] | None
Text = Annotated[str, Field(min_length=1)]
Stop = Text | Annotated[list[Text], Field(max_length=256)]
JSONObject = dict[str, Any]

_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Biases = Annotated[dict[_TokenId, float], Field(json_schema_extra={"additionalProperties": False})]


class SamplingFields(Said):
    """How tokens are chosen: OpenAI's fields, and llama-server's by its names. What is not given is the model's own."""

    model: str | None = Field(None, description="A name of `/v1/models`; without it the model that is served.")
    stream: bool | None = Field(None, description="Answer with server-sent events, as the tokens come.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy: always the likeliest token.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: Annotated[int, Field(ge=-1, le=_INT32), AS_WHOLE] | None = Field(
        None, description="Likeliest tokens to choose from; 0 and -1 are off. (llama-server's)"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Least probability, relative to the likeliest token's; 0 is off. (llama-server's)"
    )
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Divides the logits of recent tokens; 1 is off. (llama-server's)"
    )
    repeat_last_n: Annotated[int, Field(ge=-1, le=_INT32), AS_WHOLE] | None = Field(
        None, description="How many tokens are recent; -1: all of the context. (llama-server's)"
    )
    presence_penalty: float | None = Field(
        None, ge=-100, le=100, description="Taken off the logits of recent tokens, once."
    )
    frequency_penalty: float | None = Field(
        None, ge=-100, le=100, description="Taken off the logits of recent tokens, for each time they occur."
    )
    seed: Annotated[int, Field(ge=-_MAX_SEED, le=_MAX_SEED), AS_WHOLE] | None = Field(
        None, description="Same seed, same answer; -1: another one each time."
    )
    logit_bias: Biases | None = Field(None, description="Token id -> what is added to its logit.")
    grammar: Text | None = Field(
        None, description="A grammar in llama.cpp's GBNF that the answer follows. (llama-server's)"
    )
    cache_prompt: bool | None = Field(
        None, description="False: compute all of the prompt, even where its beginning is known. (llama-server's)"
    )

    def sampling(self) -> dict[str, Any]:
        """The options by the names of `SamplingParams`."""
        top_k = self.top_k if self.top_k is None else max(0, self.top_k)
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "penalty_last_n": self.repeat_last_n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": kept_seed(self.seed),
            "logit_bias": self.logit_bias,
            "grammar": self.grammar,
        }

    @property
    def reuse(self) -> bool:
        """Whether what is known of the prompt need not be computed again."""
        return self.cache_prompt is not False


def kept_seed(seed: int | None) -> int | None:
    """llama.cpp's seed, 32 bits, of OpenAI's, 64 bits and a sign."""
    return None if seed is None or seed == -1 else seed % _N_SEEDS


def as_json(model: Said) -> dict[str, Any]:
    """What was said, by its names on the wire, without what was null or not said."""
    dumped: Mapping[str, Any] = model.model_dump(by_alias=True, exclude_none=True)
    return dict(dumped)
