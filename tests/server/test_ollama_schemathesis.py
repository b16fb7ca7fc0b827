"""Ollama's part of the OpenAPI document is true: what it allows is answered as it says, the rest refused as it says."""

import json
import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from ollama_server import serving
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

NAME = "llama3.2-vision"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
OPERATIONS = [
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/show"),
    ("POST", "/api/pull"),
    ("DELETE", "/api/delete"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
]
N_EXAMPLES = 20


@pytest.fixture(scope="module")
def document():
    with serving(aliases=(NAME,)) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json", timeout=120).include(path_regex="^/api/")


def test_every_operation_is_tried(document):
    found = [result.ok() for result in document.get_all_operations()]
    assert {(operation.method.upper(), operation.path) for operation in found} == set(OPERATIONS)


def test_every_reference_leads_somewhere(document):
    """OpenAI's shapes stand in the same document: of two with one name, both get another."""
    whole = document.raw_schema
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(whole))):
        found = whole
        for part in reference.split("/"):
            assert part in found, reference
            found = found[part]


MODES = [
    pytest.param(method, path, mode, id=f"{method} {path} {mode.value}")
    for method, path in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if method != "GET" or mode is GenerationMode.POSITIVE  # nothing can be wrong where nothing is sent
]


@pytest.mark.parametrize(("method", "path", "mode"), MODES)
def test_the_document_is_true(document, method, path, mode):
    strategy = document[path][method].as_strategy(generation_mode=mode)

    @given(case=strategy)
    @settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        is_about_a_model = isinstance(case.body, dict) and isinstance(case.body.get("model"), str)
        if is_about_a_model and mode is GenerationMode.POSITIVE:
            case.body["model"] = NAME  # so that it gets further than 404
        case.call_and_validate(checks=CHECKS, timeout=60)

    check()
