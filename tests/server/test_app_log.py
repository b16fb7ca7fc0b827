"""The line that a request leaves, and the id by which it is found."""

import json
import logging

import pytest

from pyvllama.server.request_log import LogFormatter

SECRET = "what the user said"


@pytest.fixture
def lines(caplog):
    """lines() -> [fields] of the requests so far."""
    caplog.set_level(logging.INFO, logger="pyvllama.server")
    return lambda: [r.fields for r in caplog.records if r.getMessage() == "request"]


def test_what_a_line_says(ask, lines):
    response = ask(api_keys=("a-key",)).post(
        "/v1/echo?key=hidden", json={"name": SECRET}, headers={"x-api-key": "a-key", "User-Agent": "me"}
    )
    (line,) = lines()
    assert line["id"] == response.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/echo", 200)
    assert line["bytes_in"] == len(response.request.content) and line["bytes_out"] == len(response.content)
    assert line["ms"] >= line["first_ms"] >= 0
    assert line["model"] == "echo", "what the handler adds"
    assert not any(word in json.dumps(line) for word in (SECRET, "hidden", "a-key"))


def test_refused_requests_have_one_too(ask, lines):
    client = ask(api_keys=("a-key",))
    client.get("/metrics")
    client.get("/metrics", headers={"Host": "evil.example"})
    client.get("/metrics", headers={"Origin": "https://evil.example"})
    assert [line["status"] for line in lines()] == [401, 403, 403]


def test_prompts_only_when_asked_for(ask, lines):
    ask().post("/v1/echo", json={"name": SECRET})
    ask(log_prompts=True).post("/v1/echo", json={"name": SECRET, "image": "data:image/png;base64," + "A" * 99})
    without, with_prompt = lines()
    assert "request" not in without
    assert with_prompt["request"] == {"name": SECRET, "image": "<121 characters>"}


def test_a_prompt_that_is_no_json_is_not_logged(ask, lines):
    ask(log_prompts=True).post("/v1/size", content=b"\xff\xfe not json")
    assert "request" not in lines()[0]


def test_a_failure_is_named(ask, lines, caplog):
    ask().get("/v1/broken")
    assert (lines()[0]["status"], lines()[0]["error"]) == (500, "RuntimeError")


@pytest.mark.parametrize("given", ["abc-123", "4bf92f3577b34da6/a3ce.929:d0e", "x" * 128])
def test_the_client_may_choose_its_id(ask, lines, given):
    assert ask().get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    assert lines()[0]["id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "with blank", 'quote"', "ümlaut", "a\tb", "<script>", "a,b"])
def test_ids_that_are_none(ask, given):
    client = ask()
    ids = [client.get("/health", headers={"X-Request-Id": given.encode()}).headers["x-request-id"] for _ in "12"]
    assert given not in ids and ids[0] != ids[1]
    assert all(len(i) == 16 for i in ids)


def test_each_request_has_another_one(ask):
    client = ask()
    assert len({client.get("/health").headers["x-request-id"] for _ in range(20)}) == 20


# --- the form of a line ---


def record(message="request", fields=None, **options):
    made = logging.LogRecord("pyvllama.server", logging.INFO, "x.py", 1, message, (), options.get("exc_info"))
    made.created, made.msecs = 0.25, 250.0
    if fields:
        made.fields = fields
    return made


def test_text():
    line = LogFormatter("text").format(record(fields={"status": 200, "path": "/v1/x", "ms": 1.5, "ok": True}))
    assert line == "time=1970-01-01T00:00:00.250Z level=info event=request status=200 path=/v1/x ms=1.5 ok=true"


@pytest.mark.parametrize(
    "evil", ["/a\nlevel=error event=forged", "/a b", '/a"b', "", "a=b", "\x1b[31m", "/\u2028x", "\x85", "x\\n"]
)
def test_no_value_makes_a_line_or_a_field_of_its_own(evil):
    line = LogFormatter("text").format(record(fields={"path": evil, "end": 1}))
    assert line.isprintable() and len(line.splitlines()) == 1
    quoted = line[line.index(" path=") + 6 : line.rindex(" end=1")]
    assert json.loads(quoted) == evil
    assert json.loads(LogFormatter("json").format(record(fields={"path": evil})))["path"] == evil
    assert len(LogFormatter("json").format(record(fields={"path": evil})).splitlines()) == 1


def test_json_with_a_traceback():
    try:
        raise ValueError("inner")
    except ValueError as e:
        line = LogFormatter("json").format(record("failed", exc_info=(type(e), e, e.__traceback__)))
    assert "ValueError: inner" in json.loads(line)["traceback"]
    assert "\n" not in line
