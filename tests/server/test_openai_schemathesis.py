"""The OpenAPI document against the server: what is made up from it is answered as it says."""

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from talk import data_uri

POSTED = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
    "/apply-template",
]
ASKED = ["/v1/models", "/v1/models/{model}", "/props", "/health", "/metrics"]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FEW = hypothesis.settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def api(server):
    load_all_checks()
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=120)


def answers_to(operation, mode, change, **validation) -> Counter:
    """How often each status came back for requests that are made up, and changed; each is checked by schemathesis."""
    statuses: Counter = Counter()

    @FEW
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        case.body = change(case.body)
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, **validation)

    check()
    return statuses


def limited(body: Any) -> Any:
    """The same, but answered soon."""
    if not isinstance(body, dict):
        return body
    body = {name: 2 if name in LIMITS and is_count(value) else value for name, value in body.items()}
    body = {**body, "n": 2} if is_count(body.get("n")) else body
    return {**dict.fromkeys(LIMITS, 2), **body}


def is_count(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and value >= -1 and value != 0)


# --- whatever the document allows, or does not ---


@pytest.mark.parametrize("path", POSTED)
def test_what_the_document_forbids_is_refused(api, path):
    """Also: nothing is answered by a status, a type or a shape that the document does not know."""
    statuses = answers_to(api[path]["POST"], GenerationMode.NEGATIVE, limited)
    assert {*statuses} <= {400, 404}
    assert statuses[400] > 3


@pytest.mark.parametrize("path", POSTED)
def test_what_the_document_allows_is_answered_or_refused_as_it_says(api, path):
    """Refused, too: no document can say what is a grammar, a picture, a token of the model."""
    beyond = [CHECKS.get_one("positive_data_acceptance")]
    statuses = answers_to(api[path]["POST"], GenerationMode.POSITIVE, limited, excluded_checks=beyond)
    assert {*statuses} <= {200, 400, 404}


@pytest.mark.parametrize("path", ASKED)
def test_what_is_asked_by_get(api, path):
    statuses = answers_to(api[path]["GET"], GenerationMode.POSITIVE, lambda body: body)
    assert {*statuses} <= {200, 404}


# --- what a document cannot know, put right ---


@pytest.fixture(scope="module")
def put_right(pocket_checkpoint: Path):
    """put_right(body) -> a request that must be answered: nothing left in it that only this model can judge."""
    uri = data_uri(pocket_checkpoint / "samples" / "01_square.png")
    unknown = ("model", "grammar", "json_schema", "response_format", "text", "tools", "tool_choice", "stream_options",
               "top_logprobs", "echo", "best_of", "suffix", "context_shift", "truncation")  # fmt: skip

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(item) for item in value][:3]
        if not isinstance(value, dict):
            return (value or "a") if isinstance(value, str) else value
        kind, role = value.get("type"), value.get("role")
        if kind == "image_url":
            return {"type": kind, "image_url": {"url": uri}}
        if kind == "input_image":
            return {"type": kind, "image_url": uri}
        if kind == "input_text" and "image_url" in value:
            return {"type": kind, "text": "a"}
        if role is not None and kind in (None, "message"):
            content = change(value["content"]) if role == "user" else "a"
            return {**({"type": kind} if kind else {}), "role": role, "content": content, "name": "a"}
        return {name: change(item) for name, item in value.items()}

    def request(body: Any) -> Any:
        body = {name: item for name, item in limited(body).items() if name not in unknown}
        for name in ("messages", "input"):
            if name in body:
                body[name] = change(body[name])
        if isinstance(body.get("input"), list):
            body["input"] = [*body["input"], {"role": "user", "content": "a"}]  # thoughts alone are no conversation
        for name in ("tokens", "content", "prompt"):
            if body.get(name) is not None:
                body[name] = known_tokens(body[name])
        if body.get("logit_bias"):
            body["logit_bias"] = {str(int(token) % 1000): bias for token, bias in body["logit_bias"].items()}
        return body

    return request


def known_tokens(value: Any) -> Any:
    if isinstance(value, list):
        return [known_tokens(item) for item in value][:3]
    return value if isinstance(value, str) else int(value) % 1000


@pytest.mark.parametrize("path", POSTED)
def test_what_makes_sense_is_answered(api, path, put_right):
    statuses = answers_to(api[path]["POST"], GenerationMode.POSITIVE, put_right)
    assert {*statuses} == {200}
