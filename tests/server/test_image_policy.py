"""Pictures by address: what a hostile client or a hostile server tries with our server's network."""

import base64
import contextlib
import dataclasses
import functools
import http.server
import ipaddress
import socket
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_talk import RINGS
from pictures import PNG, encoded, noise, same

from pyvllama.errors import ImageError, ImageFetchRefused, ImageTooLarge
from pyvllama.image import fetch as fetch_module
from pyvllama.image.public_address import why_not_public
from pyvllama.image.source import load_image, load_images
from pyvllama.server.image_policy import image_limits
from pyvllama.server.settings import Settings

LIMITS = image_limits(Settings(image_timeout_s=2.0))
OUTSIDE = "127.0.0.2"  # plays a public machine


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001",
     "127.0.0.1.", "[::1]", "[::]", "0.0.0.0", "0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
     "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:1::1]", "169.254.169.254", "[::ffff:169.254.169.254]",
     "[fd00:ec2::254]", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "100.100.100.200", "[fe80::1]",
     "[fe80::1%25lo]", "[fe80::1%lo]", "224.0.0.1", "255.255.255.255", "168.63.129.16", "①②⑦.⓪.⓪.①", "127。0。0。1",
     "user@127.0.0.1", "93.184.216.34@127.0.0.1", "127.0.0.1#@93.184.216.34"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_of_an_inner_address_is_contacted(monkeypatch, scheme, host):
    def connect(self, address):
        raise AssertionError(f"{address} was contacted")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ImageFetchRefused):
        load_image(f"{scheme}://{host}:9/a.png", limits=LIMITS)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a.png", "gopher://127.0.0.1:6379/_x", "dict://127.0.0.1:11211/",
     "unix:///run/docker.sock", "jar:http://x!/a.png", "http:///a.png", "http://", "//127.0.0.1/a.png", "/etc/passwd",
     "a.png", "~/a.png", "C:\\a.png", "\\\\host\\a.png", "http:/127.0.0.1/a.png", " http://127.0.0.1/a.png",
     "http://[::1", "http://a:99999/", "http://a\x00b/", "http://exa mple.com/", "http://" + "a" * 300 + "/", "http://..a/",
     "data:text/html,<b>", "data:image/svg+xml,<svg/>", "data:,", "data:image/png;base64,!!!", "about:blank", ""],
)  # fmt: skip
def test_nothing_but_http_and_data(url):
    with pytest.raises(ImageError):
        load_image(url, limits=LIMITS)


@given(st.text(max_size=80), st.sampled_from(["", "http://", "https://", "http://[", "file://", "data:", "http://a@"]))
def test_any_text_is_an_image_error_at_worst(text, scheme):
    """No other exception leaves, whatever a client writes; nobody is asked who does not exist."""
    limits = dataclasses.replace(LIMITS, check_address=lambda _: "is not contacted in this test")
    real, fetch_module.socket.getaddrinfo = socket.getaddrinfo, resolver("10.0.0.1", check=socket.getaddrinfo)
    try:
        load_image(scheme + text, limits=limits)
    except ImageError:
        pass
    finally:
        fetch_module.socket.getaddrinfo = real


def resolver(*answers, check=None):
    """getaddrinfo with an answer a call, the last one again and again; each may be a list."""
    left = list(answers)

    def getaddrinfo(host, port, *args, **options):
        if check is not None:
            socket.inet_aton("0.0.0.0")
            str(host).encode("idna")
            if "\0" in str(host):
                raise ValueError("embedded null character")
        found = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in ([found] if isinstance(found, str) else found)
        ]

    return getaddrinfo


# --- a machine outside, played by a loopback address that counts as public ---

needs_two_loopbacks = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 by itself")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.server.server_address[0], self.path))
        path, _, target = self.path.partition("?")
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def machines():
    """(seen, port): one that counts as public, one that does not, at the same port."""
    seen = []
    outer = http.server.ThreadingHTTPServer((OUTSIDE, 0), Handler)
    port = outer.server_port
    inner = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    servers = (outer, inner)
    for server in servers:
        server.seen, server.daemon_threads = seen, True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield seen, port
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def limits():
    def check(address):
        return None if address == ipaddress.ip_address(OUTSIDE) else why_not_public(address)

    return dataclasses.replace(LIMITS, check_address=check)


@needs_two_loopbacks
def test_the_play_works(machines, limits):
    _, port = machines
    assert same(load_image(f"http://{OUTSIDE}:{port}/a.png", limits=limits), noise())
    with pytest.raises(ImageFetchRefused):
        load_image(f"http://127.0.0.1:{port}/a.png", limits=limits)


@needs_two_loopbacks
def test_dns_rebinding(machines, limits, monkeypatch):
    """The name is asked for once a request, and what was checked is what is connected to."""
    seen, port = machines
    seen.clear()
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", resolver(OUTSIDE, "127.0.0.1"))
    assert same(load_image(f"http://rebind.example:{port}/a.png", limits=limits), noise())
    assert seen == [(OUTSIDE, "/a.png")]
    with pytest.raises(ImageFetchRefused):
        load_image(f"http://rebind.example:{port}/a.png", limits=limits)
    assert seen == [(OUTSIDE, "/a.png")]


@needs_two_loopbacks
def test_rebinding_between_redirects(machines, limits, monkeypatch):
    seen, port = machines
    seen.clear()
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", resolver(OUTSIDE, "127.0.0.1"))
    with pytest.raises(ImageFetchRefused):
        load_image(f"http://rebind.example:{port}/to?/a.png", limits=limits)
    assert [host for host, _ in seen] == [OUTSIDE]


@needs_two_loopbacks
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}/a.png", "//127.0.0.1:{port}/a.png", "http://[::ffff:127.0.0.1]:{port}/a.png",
     "http://2130706433:{port}/a.png", "http://localhost:{port}/a.png", "http://169.254.169.254/latest/meta-data/",
     "file:///etc/passwd", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA", "gopher://127.0.0.1/", "http://[::1"],
)  # fmt: skip
def test_redirects_to_the_inside(machines, limits, target):
    seen, port = machines
    seen.clear()
    with pytest.raises(ImageFetchRefused):
        load_image(f"http://{OUTSIDE}:{port}/to?{target.format(port=port)}", limits=limits)
    assert [host for host, _ in seen] == [OUTSIDE]


def test_a_name_with_both_kinds_of_addresses(monkeypatch):
    """A machine that does not answer, then one of ours: the second is refused, not tried."""
    tried = []

    def connect(self, address):
        tried.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", resolver(["8.8.8.8", "127.0.0.1"]))
    with pytest.raises(ImageFetchRefused, match="not contacted"):
        load_image("http://mixed.example/a.png", limits=LIMITS)
    assert tried == ["8.8.8.8"]


def test_inner_names_tell_no_address(monkeypatch):
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", resolver("10.20.30.40"))
    with pytest.raises(ImageFetchRefused) as caught:
        load_image("http://db.corp.example/a.png", limits=LIMITS)
    assert "10.20" not in str(caught.value)


def test_a_server_that_drips_has_an_end():
    """Slower than any single timeout, but not than the deadline of it all."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with contextlib.suppress(OSError):
                    while not stop.wait(0.05):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        limits = image_limits(Settings(allow_private_urls=True, image_timeout_s=0.5))
        with pytest.raises(ImageFetchRefused, match=r"within 0\.5 seconds"):
            load_image(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", limits=limits)
        stop.set()
        thread.join()


@needs_two_loopbacks
def test_private_addresses_for_those_who_need_them(machines):
    _, port = machines
    limits = image_limits(Settings(allow_private_urls=True))
    assert same(load_image(f"http://127.0.0.1:{port}/a.png", limits=limits), noise())


@needs_two_loopbacks
def test_proxies_of_the_environment_are_not_asked(machines, monkeypatch):
    _, port = machines
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    limits = image_limits(Settings(allow_private_urls=True))
    assert same(load_image(f"http://{OUTSIDE}:{port}/a.png", limits=limits), noise())


def test_bytes_and_pixels():
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    with pytest.raises(ImageTooLarge, match="bytes"):
        load_image(uri, limits=image_limits(Settings(max_image_bytes=len(PNG) - 1)))
    with pytest.raises(ImageTooLarge, match="35 pixels, the limit is 34"):
        load_image(uri, limits=image_limits(Settings(max_image_pixels=34)))


def test_many_pictures():
    """A bomb in parts: each is allowed, together they are not."""
    limits = image_limits(Settings(max_images=3, max_total_pixels=100))
    pictures = [encoded(noise()) for _ in range(4)]  # 35 pixels each
    assert len(load_images(pictures[:2], limits=limits)) == 2
    with pytest.raises(ImageTooLarge, match="more than the limit of 100 pixels together"):
        load_images(pictures[:3], limits=limits)
    with pytest.raises(ImageTooLarge, match="there are 4 pictures, the limit is 3"):
        load_images(pictures, limits=limits)


def test_files_below_the_media_path(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    limits = image_limits(Settings(media_path=tmp_path))
    assert same(load_image("a.png", limits=limits), noise())
    with pytest.raises(ImageError):
        load_image("../a.png", limits=limits)
    with pytest.raises(ImageError, match="refused"):
        load_image("a.png", limits=LIMITS)


# --- through the server ---


@pytest.fixture
def answer_to(make_server):
    """answer_to(url, **settings) -> a server's response to a question about this picture."""

    def ask(url, **settings):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
        return make_server(**settings).client.post("/v1/chat/completions", json=body)

    return ask


@pytest.mark.parametrize("spelling", ["01_square.png", "file://01_square.png", "file://{}/01_square.png"])
def test_a_client_names_a_file_below_the_media_path(answer_to, pocket_checkpoint, spelling):
    folder = pocket_checkpoint / "samples"
    response = answer_to(spelling.format(folder), media_path=folder)
    assert response.json()["choices"][0]["message"]["content"] == RINGS


def test_a_client_names_an_address(answer_to, pocket_checkpoint):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=pocket_checkpoint / "samples")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as pictures:
        threading.Thread(target=pictures.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{pictures.server_port}/01_square.png"
            assert answer_to(url, allow_private_urls=True).json()["choices"][0]["message"]["content"] == RINGS
            refused = answer_to(url)
        finally:
            pictures.shutdown()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")
    assert "not contacted" in refused.json()["error"]["message"]
