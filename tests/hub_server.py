"""A Hugging Face Hub of our own on 127.0.0.1: as much of its interface as downloading a repository takes."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server offers and what it was asked for."""

    url: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    """org/name -> directory with its files; there is one commit, `COMMIT`, on `main` and on the tag `v1`."""
    gated: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    """Tokens that may read what is gated."""
    requests: list[str] = field(default_factory=list)
    """'METHOD path' of all requests."""


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub for the length of a block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            parts = parts[2:] if is_api else parts
            repo, rest = "/".join(parts[:2]), parts[2:]
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repo not in hub.repositories:
                return self.send(404, {"X-Error-Code": "RepoNotFound"})
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in ("main", "v1", COMMIT):
                return self.send(404, {"X-Error-Code": "RevisionNotFound"})
            if is_api:
                files = [p for p in sorted(hub.repositories[repo].rglob("*")) if p.is_file()]
                return self.send_json(repo, rest, hub.repositories[repo], files)
            if repo in hub.gated and token not in hub.tokens:
                return self.send(403 if token else 401, {"X-Error-Code": "GatedRepo"})
            path = hub.repositories[repo].joinpath(*rest[2:])
            if not path.is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            data = path.read_bytes()
            etag = '"' + hashlib.sha1(data).hexdigest() + '"'
            return self.send(200, {"ETag": etag, "X-Repo-Commit": COMMIT}, data)

        def send_json(self, repo: str, rest: list[str], root: Path, files: list[Path]) -> None:
            names = [str(p.relative_to(root)) for p in files]
            if rest[:1] == ["tree"]:
                entries = [
                    {
                        "type": "file",
                        "path": name,
                        "size": p.stat().st_size,
                        "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                    }
                    for name, p in zip(names, files, strict=True)
                ]
                return self.send(200, {}, json.dumps(entries).encode())
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self.send(200, {}, json.dumps(info | {"private": False, "gated": False, "tags": []}).encode())

        def send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
            self.send_response(status)
            for key, value in (
                {"Content-Length": str(len(data)), "Content-Type": "application/json"} | headers
            ).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
