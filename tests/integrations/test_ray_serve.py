"""Two replicas behind Ray Serve: one address, one chat on one replica."""

import json
import re
import time

import httpx
import pytest
from talk import data_uri

pytest.importorskip("ray.serve", reason="needs the extra ray")

import ray
from ray import serve

from pyvllama.errors import ConfigError
from pyvllama.integrations.ray_serve import application, build, session_of
from pyvllama.server.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own

KEY = "a-key"
PORT = 18765
PAGE = "https://chat.example"
HELLO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def client():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        settings = Settings(
            n_ctx=16384, n_threads=1, parallel=2, api_keys=(KEY,), max_body_bytes=1 << 20, cors_origins=(PAGE,)
        )
        serve.run(application(settings, 2, n_cpus=0.1), route_prefix="/")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=60) as client:
            wait_until(
                lambda: len({of_session(client, f"any-{i}", "pyvllama_model_load_seconds") for i in range(16)}) == 2
            )
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"


def of_session(client, session, metric):
    """A metric of the replica that a session is sent to; of several lines their sum."""
    text = client.get("/metrics", headers={"x-session-id": session}).text
    return sum(map(float, re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)))


def n_answered(client, session):
    """Chats that the replica of a session has answered."""
    return of_session(client, session, r'pyvllama_requests_total\{.*route="/v1/chat/completions".*\}')


def chat(client, messages, headers=None, **options):
    body = {"messages": messages, "temperature": 0, "max_tokens": 24, **options}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_an_answer(client, pocket_checkpoint, samples):
    response = chat(client, HELLO)
    assert response.json()["choices"][0]["message"]["content"] == "I am Pocket Vllama, a tiny vision model."
    sample = samples[0]
    picture = {"type": "image_url", "image_url": {"url": data_uri(sample["path"])}}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": sample["qa"][0]["question"]}]}
    said = chat(client, [asked]).json()["choices"][0]["message"]["content"]
    assert said == sample["qa"][0]["expected"]


def test_a_stream_comes_in_pieces(client):
    body = {"messages": HELLO, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    deltas = [json.loads(line)["choices"] for line in lines]
    said = "".join(choice["delta"].get("content") or "" for choices in deltas for choice in choices)
    assert said == "I am Pocket Vllama, a tiny vision model."


def test_a_session_stays_on_its_replica(client):
    sessions = [f"session-{i}" for i in range(8)]
    before = {session: n_answered(client, session) for session in sessions}
    assert chat(client, HELLO, {"x-session-id": sessions[0]}, max_tokens=2).status_code == 200
    same = [s for s in sessions if n_answered(client, s) == before[s] + 1]
    assert sessions[0] in same
    assert 0 < len(same) < 8, "two replicas, each with some of the sessions"
    for _ in range(6):
        chat(client, HELLO, {"x-session-id": sessions[0]}, max_tokens=2)
    assert n_answered(client, sessions[0]) == before[sessions[0]] + 7
    others = [s for s in sessions if s not in same]
    assert all(n_answered(client, s) == before[s] for s in others)


def test_a_conversation_stays_on_its_replica(client):
    """Without a header: its beginning tells, turn after turn."""
    for name in ("Ann", "Bob", "Cid"):
        messages = [{"role": "user", "content": f"I am {name}. Who are you?"}]
        session = session_of(None, json.dumps({"messages": messages}).encode())
        before = n_answered(client, session)
        for _ in range(3):
            said = chat(client, messages, max_tokens=4).json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And?"}]
        assert n_answered(client, session) == before + 3


def test_a_client_that_goes_away_is_not_answered_any_more(client):
    def n_running():
        return of_session(client, "leaving", "llamacpp:requests_processing")

    ends = client.post("/tokenize", json={"content": "<|eot_id|><|end_of_text|><|eom_id|>"}).json()["tokens"]
    never = {str(token): -1e9 for token in ends}
    body = {"messages": HELLO, "stream": True, "max_tokens": 15_000, "logit_bias": never}
    with client.stream("POST", "/v1/chat/completions", json=body, headers={"x-session-id": "leaving"}) as response:
        lines = response.iter_lines()  # httpx closes the stream with it
        assert next(lines)
        wait_until(lambda: n_running() == 1, 2)
    wait_until(lambda: n_running() == 0, 2)


def test_strangers(client):
    wrong = {"Authorization": "Bearer wrong"}
    assert client.get("/v1/models", headers=wrong).status_code == 401
    assert chat(client, HELLO, wrong).status_code == 401
    assert client.get("/health", headers={"Authorization": ""}).status_code == 200
    assert client.post("/v1/chat/completions", content=b"x" * (2 << 20)).status_code == 413


def test_pages_of_other_origins(client):
    """A browser's preflight bears no key."""
    asks = {"Authorization": "", "Access-Control-Request-Method": "POST"}
    for origin, status, allowed in ((PAGE, 200, PAGE), ("https://evil.example", 400, None)):
        response = client.options("/v1/chat/completions", headers={**asks, "Origin": origin})
        assert (response.status_code, response.headers.get("access-control-allow-origin")) == (status, allowed)
    assert client.get("/v1/models", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE
    assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403


def test_errors_of_a_replica_arrive(client):
    response = chat(client, [])
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/api/nothing").json() == {"error": "there is nothing at GET /api/nothing"}


# --- the session of a request ---


def body(**request):
    return json.dumps(request).encode()


def test_sessions():
    system = {"role": "system", "content": "Be brief."}
    first, answer, second = HELLO[0], {"role": "assistant", "content": "A model."}, {"role": "user", "content": "Why?"}
    one = session_of(None, body(messages=[system, first]))
    assert one == session_of(None, body(messages=[system, first, answer, second], stream=True, seed=5))
    others = [
        body(messages=[first]),
        body(messages=[system, second]),
        body(messages=[system, first], model="other"),
        body(messages=[system, first | {"images": ["AAAA"]}]),
        body(prompt="Who are you?"),
        body(prompt="Who are you?", images=["AAAA"]),
    ]
    assert len({one, *(session_of(None, other) for other in others)}) == len(others) + 1
    assert session_of("given", others[0]) == "given"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"5", b"{}", b'{"messages": []}', b'{"messages": 5}', b"\xff", b"[" * 9999]
)
def test_what_has_none(raw):
    assert session_of(None, raw) is None


def test_build():
    given = {"replicas": "2", "n_ctx": "512", "cpus": "0.5", "deadline_s": "1.5", "log_prompts": "true", "host": "::1"}
    assert build(given) is not None


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"replicas": "two"}, "replicas must be a whole number"),
        ({"replicas": "0"}, "replicas must be a whole number"),
        ({"cpus": "-1"}, "cpus must be a number"),
        ({"gpus": "all"}, "gpus must be a number"),
        ({"n_cxt": "512"}, "no setting n_cxt"),
        ({"n_ctx": "many"}, "n_ctx must be a whole number"),
    ],
    ids=str,
)
def test_arguments_that_are_none(given, match):
    with pytest.raises(ConfigError, match=match):
        build(given)
