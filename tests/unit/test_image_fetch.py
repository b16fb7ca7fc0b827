"""Pictures at addresses: a loopback server that redirects, drips, lies and never ends."""

import base64
import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib

import pytest
from pictures import PNG, noise, same

from pyvllama.errors import ImageError, ImageFetchRefused, ImageTooLarge
from pyvllama.image import ImageLimits, load_image
from pyvllama.image import fetch as fetch_module


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        getattr(self, "get_" + self.path.split("?")[0].strip("/").split("/")[0].replace(".", "_"), self.get_missing)()

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in (
            {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
        ).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def get_a_png(self):
        self.answer(PNG, Content_Type="image/png")

    def get_no_length(self):
        self.answer(PNG, Content_Length=None)

    def get_chunked(self):
        self.protocol_version = "HTTP/1.1"
        body = b"".join(b"%x\r\n%s\r\n" % (len(PNG[i : i + 50]), PNG[i : i + 50]) for i in range(0, len(PNG), 50))
        self.answer(body + b"0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked")

    def get_html(self):
        self.answer(b"<!DOCTYPE html><html>log in first</html>", Content_Type="image/png")

    def get_missing(self):
        self.answer(b"no", status=404)

    def get_redirect(self):
        n = int(self.path.rsplit("/", 1)[1])
        self.answer(b"", status=[302, 301, 303, 307, 308][n % 5], Location="/a.png" if n == 1 else f"/redirect/{n - 1}")

    def get_to(self):
        self.answer(b"", status=302, Location=self.path.split("?", 1)[1])

    def get_gzip(self):
        self.answer(zlib.compress(PNG), Content_Encoding="gzip")

    def get_liar(self):
        self.answer(PNG[:20], Content_Length=str(len(PNG)))

    def get_huge(self):
        self.answer(b"", Content_Length=str(10**12))

    def get_endless(self):
        self.send_response(200)
        self.end_headers()
        while not self.server.stop.is_set():
            self.wfile.write(bytes(65536))

    def get_drip(self):
        self.send_response(200)
        self.end_headers()
        while not self.server.stop.wait(0.02):
            self.wfile.write(b"x")

    def get_slow_headers(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not self.server.stop.wait(0.02):
            self.wfile.write(b"x")

    def get_silent(self):
        self.server.stop.wait(20)

    def get_nonsense(self):
        self.wfile.write(b"\0\1\2 I speak no HTTP\r\n\r\n")

    def get_headers(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(500)) + b"\r\n")

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up are the point of some tests


@contextlib.contextmanager
def serving(server, scheme):
    server.seen, server.stop = [], threading.Event()
    server.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as server, serving(server, "http"):
        yield server


@pytest.mark.parametrize(
    "path", ["/a.png", "/no_length", "/chunked", "/a.png?size=1&x=ä b", "/redirect/1", "/redirect/3"]
)
def test_addresses(server, path):
    assert same(load_image(server.url + path), noise())


def test_a_request_says_who_asks_and_wants_no_compression(server):
    server.seen.clear()
    load_image(server.url.replace("//", "//Aladdin:open%20sesame@") + "/a.png?q=1#part")
    (path, headers), *_ = server.seen
    assert path == "/a.png?q=1"
    assert headers["User-Agent"] == "pyvllama" and headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"Aladdin:open sesame").decode()


def test_a_web_page_in_place_of_a_picture(server):
    with pytest.raises(ImageError, match=r"/html is not a picture.*web page"):
        load_image(server.url + "/html")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/nothing", "answers 404"),
        ("/redirect/4", "more than 3 times"),
        ("/gzip", "gzip-compressed"),
        ("/liar", "broke off after 20 of"),
        ("/nonsense", "could not be fetched"),
        ("/headers", "could not be fetched"),
        ("/to?file:///etc/passwd", "only http and https"),
        ("/to?ftp://127.0.0.1/a.png", "only http and https"),
        ("/to?http://", "more than 3 times"),
        ("/to?http://[::1", "no valid address"),
        ("/to?http://127.0.0.1:99999/", "no valid address"),
    ],
)
def test_answers_that_are_no_picture(server, path, hint):
    with pytest.raises(ImageFetchRefused, match=hint):
        load_image(server.url + path)


@pytest.mark.parametrize("path", ["/drip", "/slow_headers", "/silent"])
def test_a_slow_server_cannot_stretch_the_deadline(server, path):
    start = time.monotonic()
    with pytest.raises(ImageFetchRefused, match=r"within 0\.4 seconds"):
        load_image(server.url + path, limits=ImageLimits(timeout_s=0.4))
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("path", ["/huge", "/endless", "/a.png"])
def test_a_download_stops_at_the_byte_limit(server, path):
    with pytest.raises(ImageTooLarge, match="limit of 50 bytes"):
        load_image(server.url + path, limits=ImageLimits(max_bytes=50))


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ImageFetchRefused, match="could not be fetched"):
            load_image(f"http://127.0.0.1:{free.getsockname()[1]}/a.png", limits=ImageLimits(timeout_s=5))


def test_https_needs_a_certificate(server):
    with pytest.raises(ImageFetchRefused, match=r"could not be fetched|TLS"):
        load_image(server.url.replace("http:", "https:") + "/a.png", limits=ImageLimits(timeout_s=5))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/a.png", "gopher://host/", "http://", "http:///a.png", "http://host:port/",
            "HTTP://exa mple/", "http://" + "a" * 64 + ".com/", "http://[::1/", "http://a\r\nb/"])  # fmt: skip
def test_addresses_that_are_never_contacted(url, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("contacted")

    if "exa mple" not in url and "\r" not in url:
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ImageFetchRefused):
        load_image(url)


def test_a_policy_sees_every_address_and_every_redirect(server):
    asked = []

    def check(address):
        asked.append(str(address))

    load_image(server.url + "/redirect/2", limits=ImageLimits(check_address=check))
    assert asked == ["127.0.0.1"] * 3
    refuse = ImageLimits(check_address=lambda address: "is a loopback address" if address.is_loopback else None)
    server.seen.clear()
    with pytest.raises(ImageFetchRefused, match=r"its address is a loopback address"):
        load_image(server.url + "/a.png", limits=refuse)
    for alias in ("localhost", "127.1", "2130706433", "0x7f000001"):  # other spellings of the same machine
        with pytest.raises(ImageFetchRefused):
            load_image(f"http://{alias}:{server.server_port}/a.png", limits=refuse)
    assert server.seen == []


def test_no_header_can_be_smuggled_through_an_address(server):
    server.seen.clear()
    for path in ("/a.png\r\nX-Evil: 1", "/a.png HTTP/1.1\r\nX-Evil: 1\r\n\r\n", "/to?/a.png%0d%0aX-Evil:%201"):
        with contextlib.suppress(ImageError):
            load_image(server.url + path)
    assert all("X-Evil" not in headers for _, headers in server.seen)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    """A server whose certificate (for 127.0.0.1) only `server.authority` vouches for."""
    where = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", where / "key", "-out", where / "cert", "-days", "2", "-subj", "/CN=nobody"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    if shutil.which("openssl") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs openssl to make a certificate")
    with Server(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(where / "cert", where / "key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with serving(server, "https"):
            server.authority = where / "cert"
            yield server


def test_https(tls_server, monkeypatch):
    with pytest.raises(ImageFetchRefused, match="no trustworthy TLS certificate"):
        load_image(tls_server.url + "/a.png")
    context = ssl.create_default_context(cafile=tls_server.authority)
    monkeypatch.setattr(fetch_module, "_tls_context", lambda: context)
    assert same(load_image(tls_server.url + "/chunked"), noise())
    with pytest.raises(ImageFetchRefused, match=r"within 0\.4 seconds"):
        load_image(tls_server.url + "/drip", limits=ImageLimits(timeout_s=0.4))
    with pytest.raises(
        ImageFetchRefused, match="no trustworthy TLS certificate"
    ):  # another name than the certificate's
        load_image(tls_server.url.replace("127.0.0.1", "localhost") + "/a.png", limits=ImageLimits(timeout_s=5))
