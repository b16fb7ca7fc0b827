"""Stopping: every open stream is finished, or fails in words."""

import json
import threading
import time

import httpx
import pytest
from shell import app_that_talks, serving, wait_until
from talk import data_uri


class Listener(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, url, tokens, picture=""):
        super().__init__()
        self.url, self.params, self.lines, self.failure = url, {"tokens": tokens, "picture": picture}, [], None
        self.start()

    def run(self):
        try:
            with httpx.stream("GET", self.url + "/v1/talk", params=self.params, timeout=60) as response:
                for line in response.iter_lines():
                    self.lines.append(json.loads(line))
        except httpx.HTTPError as e:
            self.failure = e


@pytest.fixture
def talking(request):
    app = app_that_talks(**request.param)
    with serving(app.state.settings, app=app) as running:
        yield running


def n_requests(running):
    """That have come in, answered or not."""
    state = running.server.server_state
    return state.total_requests + len(state.tasks)


def stop(running):
    start = time.monotonic()
    running.server.stop()
    running.thread.join(30)
    assert not running.thread.is_alive()
    return time.monotonic() - start


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_answers_that_run_are_finished(talking):
    clients = [Listener(talking.url, 200) for _ in range(6)]  # two of them wait for a slot
    wait_until(lambda: n_requests(talking) == 6 and any(c.lines for c in clients))
    assert stop(talking) < 25
    for client in clients:
        client.join(5)
        assert client.failure is None
        assert client.lines[-1]["end"] == "length"


@pytest.mark.parametrize("talking", [{"grace_s": 0.2, "n_ctx": 65536}], indirect=True)
def test_answers_that_take_too_long_fail_in_words(talking):
    clients = [Listener(talking.url, 100_000) for _ in range(6)]
    wait_until(lambda: n_requests(talking) == 6 and any(c.lines for c in clients))
    assert stop(talking) < 5
    for client in clients:
        client.join(5)
        assert client.failure is None, "the stream has an end"
        assert "error" in client.lines[-1], client.lines[-1:]


@pytest.mark.parametrize("talking", [{"grace_s": 0.0, "n_ctx": 65536}], indirect=True)
def test_pictures_that_wait_to_be_encoded_fail_in_words(talking, samples):
    """One is being encoded, the others wait for the encoder, when the end comes."""
    clients = [Listener(talking.url, 100_000, data_uri(sample["path"])) for sample in samples[:8]]
    wait_until(lambda: talking.app.state.pool.loaded()[0].served.n_open == 8)
    assert stop(talking) < 5
    for client in clients:
        client.join(5)
        assert client.failure is None
        assert "error" in client.lines[-1], client.lines[-1:]


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_an_idle_server_stops_at_once(talking):
    talking.client.get("/health")  # and its connection is kept open by the client
    assert stop(talking) < 2


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_nobody_new_comes_in(talking):
    client = Listener(talking.url, 400)
    wait_until(lambda: client.lines)
    talking.server.stop()

    def is_refused():
        try:
            return not httpx.get(talking.url + "/health", timeout=1)
        except httpx.HTTPError:
            return True

    wait_until(is_refused, 3)
    client.join(30)
    assert client.lines[-1]["end"] == "length"
