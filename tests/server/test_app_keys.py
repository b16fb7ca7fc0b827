"""API keys: what is open, what is not, and how a key is given."""

import hmac
import socket

import pytest
from shell import serving, shell

from pyvllama.errors import ConfigError
from pyvllama.server import api_keys
from pyvllama.server.settings import Settings, read_api_keys

KEYS = ("first-key", "second-key")


def test_without_keys_everything_is_open(ask):
    assert ask().post("/v1/echo", json={"name": "a"}).status_code == 200


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer {}"}, {"Authorization": "bearer  {}"}, {"x-api-key": "{}"}, {"X-API-Key": "{}"}],
)
def test_each_key_opens(ask, key, headers):
    headers = {name: value.format(key) for name, value in headers.items()}
    client = ask(api_keys=KEYS)
    assert client.post("/v1/echo", json={"name": "a"}, headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-keyy"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": "Bearer first-key second-key"},
        {"Authorization": "Bearer first-key,second-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"Authorization": "Bearer fïrst-key".encode()},
        {"Authorization": b"Bearer \xff\xfe"},
        {"x-api-key": ""},
        {"x-api-key": "wrong"},
        {"Authorization": "Bearer wrong", "x-api-key": "first-key"},
        {"Cookie": "key=first-key"},
    ],
    ids=str,
)
def test_anything_else_does_not(ask, headers):
    client = ask(api_keys=KEYS)
    for path in ("/v1/echo", "/api/echo"):
        response = client.post(path, json={"name": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "API key" in response.text and "first" not in response.text
    assert response.json() == {"error": response.json()["error"]}


PATHS = [
    *("/metrics", "/openapi.json", "/v1/nothing", "/docs", "/health/", "/page", "/v1/models", "/api/tags", "/v1/echo"),
    "/favicon.ico",
    *("//health", "/health/../metrics", "/%2e/health", "/health%2f..%2fmetrics", "/health;/metrics", "/HEALTH"),
    *("http://localhost/metrics", "/metrics?/health", "/metrics#/health", "/metrics%00/health"),
]


@pytest.fixture(scope="module")
def locked():
    app = shell(port=0, api_keys=KEYS)
    with serving(app.state.settings, app=app) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_open_by_accident(locked, path):
    assert raw_status(locked, path) in (400, 401)


@pytest.mark.parametrize("path", ["/page/../metrics", "/page/..%2fmetrics", "/page/%2e%2e/metrics", "/page//metrics"])
def test_the_pages_folder_is_no_way_around(locked, path):
    assert raw_status(locked, path) == 404, "nobody makes /metrics of it"


def raw_status(running, path):
    """As it is: clients tidy paths up."""
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int(sock.recv(4096).split()[1])


def test_health_is_open(ask):
    client = ask(api_keys=KEYS)
    for path in ("/health", "/v1/health"):
        assert client.get(path).json() == {"status": "ok"}
    assert client.post("/health").status_code == 401, "only reading is open"
    assert client.post("/").status_code == 401


def test_the_page_is_open_but_nothing_beside_it(ask):
    client = ask(api_keys=KEYS)
    assert client.get("/").status_code == 200
    assert client.get("/page/nothing").status_code == 404
    assert client.delete("/page/nothing").status_code == 401


def test_a_query_is_no_place_for_a_key(ask):
    assert ask(api_keys=KEYS).get("/metrics?api_key=first-key&key=first-key").status_code == 401


def test_every_key_is_compared_each_time(ask, monkeypatch):
    """A wrong key and a right one take the same comparisons, of digests of one length."""
    compared = []
    real = hmac.compare_digest

    def counting(a, b):
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(api_keys.hmac, "compare_digest", counting)
    client = ask(api_keys=KEYS)
    for key in ("first-key", "second-key", "wrong", ""):
        compared.clear()
        client.get("/metrics", headers={"x-api-key": key})
        assert compared == [(32, 32)] * 2


# --- where keys come from ---


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the team\nfirst-key\n\n  second-key \r\n#off\n")
    assert read_api_keys(path) == KEYS


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no API key"), (b"# none\n", "holds no API key"), (b"\xff\xfe", "cannot be read"),
     (b"a" * (2 << 20), "no file of API keys")],
)  # fmt: skip
def test_files_that_hold_none(tmp_path, content, message):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_api_keys(path)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_api_keys(tmp_path / "none")


@pytest.mark.parametrize("key", ["", "with blank", "ümlaut", "line\nbreak", "x" * 513])
def test_keys_that_no_header_carries(key):
    with pytest.raises(ConfigError, match="API key 2") as caught:
        Settings(api_keys=("good", key))
    assert not key or key not in str(caught.value)


def test_keys_are_not_shown():
    assert "first" not in repr(Settings(api_keys=KEYS))
