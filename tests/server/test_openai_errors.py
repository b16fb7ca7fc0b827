"""What is wrong with a request: said in OpenAI's shape, naming the field, as the error class that its client has."""

import json

import openai
import pytest
from openai_talk import connect, picture, said
from starlette.exceptions import HTTPException

from pyvllama.errors import BackendError, ConfigError, ContextOverflow, QueueFull
from pyvllama.locate import pocket_pair
from pyvllama.server.openai.errors import InvalidRequest, error_object, openai_error

HELLO = [said("Hello!")]


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


def refused(client, match, param, **options):
    options = {"model": "", "messages": HELLO, "max_tokens": 1, **options}
    with pytest.raises(openai.BadRequestError, match=match) as caught:
        client.chat.completions.create(**options)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", "1", "valid number"),
        ("temperature", True, "valid number"),
        ("top_p", 1.01, "less than or equal to 1"),
        ("top_k", -2, "greater than or equal to -1"),
        ("min_p", 2, "less than or equal to 1"),
        ("repeat_penalty", 0, "greater than or equal to 0.01"),
        ("presence_penalty", 101, "less than or equal to 100"),
        ("frequency_penalty", -101, "greater than or equal to -100"),
        ("seed", 10**20, "less than or equal to"),
        ("seed", 1.5, "valid integer"),
        ("max_tokens", 0, "greater than or equal to 1, or should be -1"),
        ("max_completion_tokens", -2, "greater than or equal to 1"),
        ("n", 0, "greater than or equal to 1"),
        ("n", 129, "less than or equal to 128"),
        ("stop", "", "at least 1 character"),
        ("stop", 5, "valid string, or should be a valid list"),
        ("logprobs", 1, "valid boolean"),
        ("top_logprobs", 21, "less than or equal to 20"),
        ("stream_options", {"include_usage": True}, "only allowed when stream is true"),
        ("stream", "yes", "valid boolean"),
        ("tool_choice", "always", "'none', 'auto' or 'required'"),
        ("grammar", "", "at least 1 character"),
        ("messages", [], "at least 1 item"),
        ("messages", "Hello!", "valid list"),
        ("model", 5, "valid string"),
    ],
)
def test_values_that_a_field_cannot_have(client, field, value, match):
    refused(client, match, field, extra_body={field: value})


@pytest.mark.parametrize(
    ("messages", "param", "match"),
    [
        ([{"role": "user"}], "messages[0].content", "required"),
        ([{"content": "x"}], "messages[0].role", "required"),
        ([{"role": "narrator", "content": "x"}], "messages[0].role", "is 'narrator', but must be one of 'system'"),
        ([*HELLO, {"role": "user", "content": 5}], "messages[1].content", "valid string, or should be a valid list"),
        ([{"role": "user", "content": ""}], "messages[0].content", "at least 1 character"),
        ([{"role": "user", "content": []}], "messages[0].content", "at least 1 item"),
        ([said({"type": "text"})], "messages[0].content[0].text", "required"),
        ([said("", "")], "messages[0].content", "is empty"),
        ([said({"type": "input_audio"})], "messages[0].content[0].type", "is 'input_audio', but must be one of 'text'"),
        ([said({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url", "required"),
        ([said({"type": "image_url", "image_url": {"url": 1}})], "messages[0].content[0].image_url.url", "string"),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": "data:x"}]}],
            "messages[0].content[0].type",
            "'text'",
        ),
        ([{"role": "assistant", "content": None}], "messages[0]", "null as its content|has no"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "required",
        ),
    ],
    ids=str,
)
def test_conversations_that_are_none(client, messages, param, match):
    error = refused(client, match, param, messages=messages)
    assert error.body["message"].startswith(param.split("[", maxsplit=1)[0])


@pytest.mark.parametrize(
    ("options", "param", "match"),
    [
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "names token 999999"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
            "'g', which is not among the tools",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "is 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "https://x/y"}}}},
            "response_format.json_schema.schema",
            "cannot be made a grammar",
        ),
        (
            {"extra_body": {"grammar": 'root ::= "a"'}, "response_format": {"type": "json_object"}},
            "grammar",
            "can have one of them",
        ),
        ({"extra_body": {"grammar": "root ::= ("}}, "grammar", "does not understand the grammar"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense(client, options, param, match):
    refused(client, match, param, **options)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", "is damaged or of an unknown kind"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "."),
        ("file:///etc/passwd", "."),
        ("/etc/passwd", "."),
        ("http://127.0.0.1:1/x.png", "."),
        ("http://169.254.169.254/latest", "."),
        ("gopher://x", "."),
    ],
)
def test_pictures_that_are_none(client, url, match):
    error = refused(client, match, None, messages=[said({"type": "image_url", "image_url": {"url": url}}, "?")])
    assert error.code == "invalid_image"
    assert "root:" not in str(error)


def test_which_of_several_pictures_is_none(client):
    """Those of all messages count."""
    good = picture(pocket_pair().text.parent / "shapes.png")
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [said(good, "?"), {"role": "assistant", "content": "Yes."}, said(good, bad, "?")]
    refused(client, "image 3 of 3: the data: URI of 26 characters is not a picture", None, messages=messages)


def test_a_model_that_does_not_exist(client):
    with pytest.raises(openai.NotFoundError, match="gpt-4o") as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="../../etc/passwd", messages=HELLO)


@pytest.mark.parametrize(
    ("body", "content_type", "match"),
    [
        (b"{", "application/json", "no valid JSON"),
        (b"\xff\xfe", "application/json", ""),
        (b"[]", "application/json", "must be a JSON object"),
        (b"null", "application/json", ""),
        (b"", "application/json", ""),
        (b'{"messages": []}', "text/plain", "Content-Type: application/json"),
        (b"[" * 100_000, "application/json", ""),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", "unicode"),
        (b'{"messages": [{"role": "\\ud800", "content": "x"}]}', "application/json", ""),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "application/json", "finite"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "application/json", "finite"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_no_request(server, body, content_type, match):
    got = server.client.post("/v1/chat/completions", content=body, headers={"Content-Type": content_type})
    assert got.status_code == 400
    error = got.json()["error"]
    assert match in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_what_this_model_cannot_do_is_said_in_words(client, server):
    with pytest.raises(openai.InternalServerError, match="makes no embeddings") as caught:
        client.embeddings.create(model="", input="x")
    assert (caught.value.status_code, caught.value.code) == (501, "not_supported")
    with pytest.raises(openai.InternalServerError, match="makes none"):
        client.images.generate(prompt="x")
    with pytest.raises(openai.NotFoundError, match="nothing is kept"):
        client.responses.retrieve("resp_1")
    got = server.client.get("/v1/nothing")
    assert (got.status_code, got.json()["error"]["type"]) == (404, "invalid_request_error")


def test_an_answer_follows_an_error_as_if_it_had_not_been(client, pocket_checkpoint):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="", messages=HELLO, temperature=-1)
    messages = [said(picture(pocket_checkpoint / "samples" / "01_square.png"), "What colour is the ring?")]
    got = client.chat.completions.create(model="", messages=messages, temperature=0)
    assert got.choices[0].message.content == "The ring is yellow."


# --- openai_error itself ---


@pytest.mark.parametrize(
    ("error", "status", "want"),
    [
        (ConfigError("n must be 1"), 400, {"type": "invalid_request_error", "param": "n", "code": None}),
        (ConfigError("nothing is set"), 400, {"type": "invalid_request_error", "param": None, "code": None}),
        (ContextOverflow("too long"), 400, {"param": "messages", "code": "context_length_exceeded"}),
        (QueueFull("later"), 429, {"code": "rate_limit_exceeded", "param": None}),
        (BackendError("memory"), 500, {"type": "server_error", "message": "memory"}),
        (KeyError("secret"), 500, {"type": "server_error"}),
        (HTTPException(405), 405, {"type": "invalid_request_error", "code": "method_not_allowed"}),
        (InvalidRequest("no", "suffix"), 400, {"message": "no", "param": "suffix"}),
        (InvalidRequest("no", status=501), 501, {"type": "not_supported_error", "code": "not_supported"}),
    ],
    ids=repr,
)
def test_every_error_has_openais_shape(error, status, want):
    answer = openai_error(error)
    body = json.loads(answer.body)["error"]
    assert answer.status_code == status
    assert set(body) == {"message", "type", "param", "code"}
    assert want.items() <= body.items()
    assert body == error_object(error)
    assert "secret" not in body["message"], "what is none of ours is not shown"
    assert ("retry-after" in answer.headers) == (status == 429)


def test_messages_are_text_that_can_be_sent():
    assert json.loads(openai_error(ConfigError("stop \ud800")).body)["error"]["message"] == "stop \ufffd"
