"""Web pages of strangers: DNS rebinding, requests across origins, CORS."""

import socket

import pytest

from pyvllama.errors import ConfigError
from pyvllama.server.host_check import host_name
from pyvllama.server.settings import Settings

BODY = {"name": "a"}


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080",
     "app.localhost:8080", "192.168.1.5:8080", "[fe80::1]:80"],
)  # fmt: skip
def test_our_names(ask, host):
    assert ask().get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example.",
     "localhostx", "localhost:8080.evil.example", "localhost:x", "evil@localhost", "localhost evil", "", "[localhost]",
     "[::1", "0x7f000001", "2130706433", "127.1", "x.localhost.evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/health", "/v1/echo", "/api/echo", "/"])
def test_dns_rebinding(ask, host, path):
    """The page's name points here now, but it is still the page's name."""
    response = ask().get(path, headers={"Host": host})
    assert response.status_code == 403
    assert "--allowed-host" in response.text


def test_two_host_headers(listen):
    running = listen()
    with socket.create_connection(("127.0.0.1", running.server.port)) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        status = sock.recv(4096).split(b"\r\n")[0]
    assert b" 400 " in status + b" " or b" 403 " in status + b" "


def test_further_names(ask):
    client = ask(allowed_hosts=("Pictures.example",))
    assert client.get("/health", headers={"Host": "pictures.EXAMPLE:443"}).status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_elsewhere_names_are_not_known(ask):
    assert ask(host="0.0.0.0").get("/health", headers={"Host": "server.example"}).status_code == 200
    strict = ask(host="0.0.0.0", allowed_hosts=("server.example",))
    assert strict.get("/health", headers={"Host": "server.example"}).status_code == 200
    assert strict.get("/health", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:80", "a"), ("A.", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", "::1"), ("a:", None), ("a:b", None),
     ("[a]:80", None), (":80", None), ("a:٣", None)],
)  # fmt: skip
def test_host_names(host, name):
    assert host_name(host) == name


# --- origins ---


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:9999", "http://localhost", "file://", "app://obsidian.md",
     "http://localhost:8080.evil.example", ""],
)  # fmt: skip
def test_pages_of_others_are_refused(ask, origin):
    """Also what a browser sends without asking first: a form may post text/plain."""
    client = ask()
    for headers in ({"Origin": origin}, {"Origin": origin, "Content-Type": "text/plain"}):
        response = client.post("/v1/size", content=b"{}", headers=headers)
        assert response.status_code == 403
        assert "--cors-origin" in response.text
        assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("origin", ["http://localhost:8080", "https://localhost:8080", "HTTP://LOCALHOST:8080"])
def test_the_servers_own_page_is_not(ask, origin):
    response = ask().post("/v1/echo", json=BODY, headers={"Origin": origin})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_programs_send_no_origin(ask):
    assert ask().post("/v1/echo", json=BODY).status_code == 200


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_a_preflight_without_cors(ask):
    response = ask().options("/v1/echo", headers={"Origin": "https://chat.example", **PREFLIGHT})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("keys", [(), ("a-key",)])
def test_cors(ask, keys):
    client = ask(cors_origins=("https://chat.example", "app://obsidian.md"), api_keys=keys)
    allowed = {"Origin": "https://chat.example"}
    response = client.options("/v1/echo", headers={**allowed, **PREFLIGHT})
    assert response.status_code == 200, "a preflight bears no key"
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in response.headers
    response = client.post("/v1/echo", json=BODY, headers={**allowed, "x-api-key": "a-key"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "Origin" in response.headers["vary"]
    assert client.post("/v1/echo", json=BODY, headers={"Origin": "app://obsidian.md", "x-api-key": "a-key"}).is_success
    for evil in ("https://evil.example", "https://chat.example.evil.example", "http://chat.example", "null"):
        for response in (
            client.options("/v1/echo", headers={"Origin": evil, **PREFLIGHT}),
            client.post("/v1/echo", json=BODY, headers={"Origin": evil, "x-api-key": "a-key"}),
        ):
            assert response.status_code == 403
            assert "access-control-allow-origin" not in response.headers


def test_an_error_can_be_read_across_origins(ask):
    client = ask(cors_origins=("https://chat.example",), api_keys=("a-key",))
    response = client.post("/v1/echo", json=BODY, headers={"Origin": "https://chat.example"})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "https://chat.example"


def test_options_that_is_no_preflight_needs_a_key(ask):
    assert ask(api_keys=("a-key",)).options("/v1/echo").status_code == 401


def test_cors_for_all(ask):
    client = ask(cors_origins=("*",))
    response = client.post("/v1/echo", json=BODY, headers={"Origin": "https://any.example"})
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin",
    ["chat.example", "https://chat.example/", "https://chat.example/path", "HTTPS://chat.example", "", "https://",
     "https://a:b", "https://chat.example https://other.example", "https://*.example/"],
)  # fmt: skip
def test_what_is_no_origin(origin):
    with pytest.raises(ConfigError, match="is no origin"):
        Settings(cors_origins=(origin,))
