"""llama-cpp-python's server with a model of ours: its own application, driven without a network."""

import gc
import json
import subprocess
import sys

import pytest
from talk import data_uri

pytest.importorskip("fastapi", reason="needs the extra llama-cpp-server")
pytest.importorskip("httpx")

from llama_cpp.server.settings import ModelSettings, ServerSettings
from starlette.testclient import TestClient

from pyvllama._runtime import llama_cpp
from pyvllama.integrations.llama_cpp_server import create_app
from pyvllama.locate import pocket_pair

# The server leaves the receiving end of a stream to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

QUESTION = {"type": "text", "text": "What is in the picture?"}


@pytest.fixture(scope="module")
def client():
    shared = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    text, mmproj = str(pocket_pair().text), str(pocket_pair().mmproj)
    models = [
        ModelSettings(model=text, model_alias="seeing", **shared),
        ModelSettings(model=text, model_alias="other", clip_model_path=mmproj, cache=True, **shared),
        ModelSettings(model=text, model_alias="kwargs", chat_template_kwargs={"date_string": "today"}, **shared),
    ]
    original = llama_cpp.Llama
    with TestClient(create_app(server_settings=ServerSettings(), model_settings=models)) as client:
        assert llama_cpp.Llama is original
        yield client
    gc.collect()  # while what it finds is still this module's to ignore


@pytest.fixture
def pictures(pocket_checkpoint):
    return sorted((pocket_checkpoint / "samples").glob("*.png"))[:2]


def body(picture, **options):
    content = [{"type": "image_url", "image_url": {"url": picture}}, QUESTION]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24, **options}


def ask(client, picture, **options):
    response = client.post("/v1/chat/completions", json=body(picture, **options))
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def expected(pictures, make):
    messages = [body(str(picture))["messages"] for picture in pictures]
    answers = [make().create_chat_completion(m, temperature=0, max_tokens=24) for m in messages]
    said = [completion["choices"][0]["message"]["content"] for completion in answers]
    assert said[0] != said[1]
    return said


def test_models(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["seeing", "other", "kwargs"]


@pytest.mark.parametrize("model", ["seeing", "other", "kwargs"])
def test_pictures(client, pictures, expected, model):
    for i in (0, 1, 0):
        completion = ask(client, data_uri(pictures[i]), model=model)
        assert completion["choices"][0]["message"]["content"] == expected[i]
        assert completion["usage"]["total_tokens"] > completion["usage"]["completion_tokens"] > 0


def test_a_stream(client, pictures, expected):
    response = client.post("/v1/chat/completions", json=body(data_uri(pictures[0]), stream=True))
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    assert "".join(deltas) == expected[0]


def test_text(client):
    chat = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    said = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
    assert said == "I am Pocket Vllama, a tiny vision model."
    completion = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3}).json()
    assert completion["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "http://[::1]:9/a.png", "http://169.254.169.254/a"])
def test_clients_do_not_look_around(client, pictures, address):
    """Neither files of the server's machine nor addresses of its network."""
    for url in (str(pictures[0]), address):
        message = refused(client, body(url))
        assert "refused" in message or "is not contacted" in message


def refused(client, request):
    """The message of a request that was the client's fault, in OpenAI's shape."""
    response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    return error["message"]


def test_what_is_no_picture(client, pictures):
    assert "base64" in refused(client, body("data:image/png;base64,!!!"))
    assert "not a picture" in refused(client, body("data:image/png;base64,aGVsbG8="))
    assert client.post("/v1/chat/completions", json=body(data_uri(pictures[0]))).status_code == 200


def test_the_command_line_is_the_servers():
    command = [sys.executable, "-m", "pyvllama.integrations.llama_cpp_server", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--clip_model_path" in run.stdout
