"""/health and /metrics."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from shell import EmptyPool, app_that_talks, serving, wait_until
from talk import data_uri

from pyvllama.errors import FormatError


def test_health_while_loading(ask):
    gate = asyncio.Event()
    client = ask(EmptyPool(gate=gate))
    response = client.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "Loading model"
    assert (response.json()["error"]["type"], response.json()["error"]["code"]) == ("unavailable_error", 503)
    assert response.headers["retry-after"] == "1"
    client.portal.call(gate.set)
    wait_until(lambda: client.get("/health").status_code == 200)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 405


def test_a_model_that_cannot_be_loaded_ends_the_server(listen):
    with pytest.raises(FormatError, match="damaged"):
        listen(EmptyPool(FormatError("the file is damaged")))


def families(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_requests_are_counted_by_route_and_status(ask):
    client = ask()
    for path in ("/health", "/health", "/v1/nothing/a", "/v1/nothing/b", "/v1/broken"):
        client.get(path)
    client.request("BREW", "/health")
    samples = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in families(client)["pyvllama_requests"].samples
        if s.name == "pyvllama_requests_total"
    }
    assert samples[("GET", "/health", "200")] == 2
    assert samples[("GET", "other", "404")] == 2, "unknown paths do not make new series"
    assert samples[("GET", "/v1/broken", "500")] == 1
    assert samples[("other", "/health", "405")] == 1


def test_two_servers_count_apart(ask):
    first, second = ask(), ask()
    first.get("/health")
    assert "pyvllama_requests_total{" in first.get("/metrics").text
    assert 'route="/health"' not in second.get("/metrics").text


def value(found, name):
    (sample,) = [s for family in found.values() for s in family.samples if s.name == name]
    return sample.value


def test_what_answers_cost(samples):
    app = app_that_talks()
    picture = data_uri(samples[0]["path"])
    with serving(app.state.settings, app=app) as running:
        before = families(running.client)
        assert value(before, "llamacpp:tokens_predicted_total") == 0
        for _ in range(2):
            running.client.get("/v1/talk", params={"tokens": 5, "picture": picture}).raise_for_status()
        found = families(running.client)
    assert value(found, "llamacpp:tokens_predicted_total") == 10
    assert value(found, "llamacpp:prompt_tokens_total") > 10
    assert value(found, "llamacpp:prompt_tokens_seconds") > 0 and value(found, "llamacpp:predicted_tokens_seconds") > 0
    assert value(found, "llamacpp:n_decode_total") >= 10
    assert value(found, "llamacpp:n_busy_slots_per_decode") == 1
    assert value(found, "llamacpp:requests_processing") == value(found, "llamacpp:requests_deferred") == 0
    assert value(found, "llamacpp:n_tokens_max") > 10
    assert value(found, "pyvllama_image_encode_seconds_count") == 1
    assert value(found, "pyvllama_images_cached_total") == 1
    assert value(found, "pyvllama_cached_images") == 1 and value(found, "pyvllama_cached_image_bytes") > 1000
    assert (value(found, "pyvllama_slots"), value(found, "pyvllama_queue_length")) == (4, 0)
    (slots,) = found["pyvllama_slots"].samples
    assert "pocket" in slots.labels["model"]
