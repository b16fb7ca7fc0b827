"""Whatever goes wrong is said in the words of the API that was asked."""

import pytest

from pyvllama.server.error_response import error_response
from pyvllama.server.validation import validation_message


def openai(response):
    error = response.json()["error"]
    assert list(response.json()) == ["error"] and set(error) == {"message", "type", "param", "code"}
    return error


def ollama(response):
    assert list(response.json()) == ["error"]
    assert isinstance(response.json()["error"], str)
    return response.json()["error"]


def test_nothing_there(ask):
    client = ask()
    error = openai(client.get("/v1/nothing"))
    assert (error["type"], error["message"]) == ("invalid_request_error", "there is nothing at GET /v1/nothing")
    assert ollama(client.get("/api/nothing")) == "there is nothing at GET /api/nothing"
    assert client.get("/api/nothing").status_code == 404


def test_a_wrong_method(ask):
    for path, read in (("/v1/echo", openai), ("/api/echo", ollama)):
        response = ask().get(path)
        read(response)
        assert response.status_code == 405 and response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b'{"name": 5}', "name", "name: should be a valid string"),
        (b'{"name": "a", "numbers": [1, "x"]}', "numbers[1]", "numbers[1]: should be a valid integer"),
        (b"{}", "name", "name: is required"),
        (b'{"name": ', None, "the body is no valid JSON"),
        (b"", None, "the body must be a JSON object"),
        (b"[]", None, "the body must be a JSON object"),
    ],
)
def test_a_wrong_request(ask, body, param, message):
    client = ask()
    json = {"Content-Type": "application/json"}
    response = client.post("/v1/echo", content=body, headers=json)
    error = openai(response)
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(message)
    response = client.post("/api/echo", content=body, headers=json)
    assert response.status_code == 400
    assert ollama(response).startswith(message)


def test_what_the_client_sent_is_not_repeated(ask):
    response = ask().post("/v1/echo", json={"name": ["my secret"]})
    assert response.status_code == 400 and "secret" not in response.text


def test_an_error_of_ours(ask):
    client = ask()
    response = client.get("/v1/refuses")
    assert response.status_code == 400
    assert openai(response)["message"] == "the picture is over the limit"
    assert ollama(client.get("/api/refuses")) == "the picture is over the limit"


def test_a_fault_of_the_server_tells_nothing_but_its_id(ask, caplog):
    for path, read in (("/v1/broken", openai), ("/api/broken", ollama)):
        caplog.clear()
        response = ask().get(path)
        assert response.status_code == 500
        read(response)
        assert "secret" not in response.text and "Traceback" not in response.text
        assert response.headers["x-request-id"] in response.text
        assert any("the secret of the house" in (r.exc_text or "") for r in caplog.records), "the log tells it"


def test_a_stream_that_breaks_is_broken_off(listen, caplog):
    import httpx

    running = listen()
    assert running.client.get("/v1/stream").text == "one\ntwo\n"
    with pytest.raises(httpx.RemoteProtocolError):
        running.client.get("/v1/stream?fail=1")


def test_retry_after_is_whole_seconds():
    assert error_response("/v1/x", 429, "later", retry_after_s=0.2).headers["retry-after"] == "1"
    assert error_response("/v1/x", 429, "later", retry_after_s=2.2).headers["retry-after"] == "3"


def test_of_several_errors_the_one_that_got_furthest_is_told():
    body = {"messages": [{"content": [{"type": "text"}]}], "n": 0}
    errors = [
        {"type": "string_type", "loc": ("body", "messages", 0, "content", "str"), "msg": "Input should be a string"},
        {
            "type": "missing",
            "loc": ("body", "messages", 0, "content", "list[Part]", 0, "text"),
            "msg": "Field required",
        },
        {"type": "greater_than", "loc": ("body", "n"), "msg": "Input should be greater than 0"},
    ]
    field = "messages[0].content[0].text"
    assert validation_message(errors, body) == (f"{field}: is required", field)
    assert validation_message(errors[:1], body)[0] == "messages[0].content: should be a string"
    assert validation_message([], None) == ("the request is not valid", None)
