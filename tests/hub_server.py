"""A Hugging Face Hub of our own on 127.0.0.1: as much of its interface as downloading and committing take.

Uploads go by the Hub's older protocol (Git LFS, "basic" transfer): clients must have HF_HUB_DISABLE_XET=1.
"""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
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
    writers: set[str] = field(default_factory=set)
    """Tokens that may write."""
    private: set[str] = field(default_factory=set)
    """Repositories that were made as private ones."""
    root: Path | None = None
    """Where repositories are made that somebody creates."""
    commits: list[list[str]] = field(default_factory=list)
    """For each commit the paths that it added."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by their SHA-256."""
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

        def do_POST(self) -> None:
            self.write()

        def do_PUT(self) -> None:
            self.write()

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def write(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.body()
            path = unquote(urlsplit(self.path).path)
            if path == "/api/validate-yaml":
                return self.send(200, {}, json.dumps({"errors": [], "warnings": []}).encode())
            if path.startswith("/objects/"):  # the storage behind LFS: the address itself is the permission
                hub.objects[path.removeprefix("/objects/")] = body
                return self.send(200, {})
            if (self.headers.get("Authorization") or "").removeprefix("Bearer ") not in hub.writers:
                return self.send(401, {})
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            repo = next((r for r in hub.repositories if f"/{r}/" in path or f"/{r}.git/" in path), None)
            if repo is None:
                return self.send(404, {"X-Error-Code": "RepoNotFound"})
            if path.endswith("/objects/batch"):
                return self.send_lfs_actions(json.loads(body))
            if "/preupload/" in path:
                return self.send_upload_modes(json.loads(body))
            assert "/commit/" in path, path
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])

        def create(self, wanted: dict) -> None:
            repo = f"{wanted['organization']}/{wanted['name']}"
            known = repo in hub.repositories
            if not known:
                assert hub.root is not None
                hub.repositories[repo] = hub.root / repo
                hub.repositories[repo].mkdir(parents=True)
                hub.private |= {repo} if wanted.get("visibility") == "private" or wanted.get("private") else set()
            answer = {"url": f"{hub.url}/{repo}", "name": repo, "id": repo}
            self.send(409 if known else 200, {}, json.dumps(answer).encode())

        def send_lfs_actions(self, wanted: dict) -> None:
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}} for o in wanted["objects"]
            ]
            answer = {"transfer": "basic", "objects": objects}
            self.send(200, {"Content-Type": "application/vnd.git-lfs+json"}, json.dumps(answer).encode())

        def send_upload_modes(self, wanted: dict) -> None:
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                }
                for f in wanted["files"]
            ]
            self.send(200, {}, json.dumps({"files": files}).encode())

        def commit(self, repo: str, lines: list[dict]) -> None:
            added = []
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    data = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    data = hub.objects[value["oid"]]
                    assert hashlib.sha256(data).hexdigest() == value["oid"]
                else:
                    continue
                (hub.repositories[repo] / value["path"]).write_bytes(data)
                added.append(value["path"])
            hub.commits.append(added)
            answer = {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            self.send(200, {}, json.dumps(answer).encode())

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


def run_program(hub: Hub, home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run `pyvllama` in a process of its own, with this hub for the Hub and all caches below `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYVLLAMA_"))}
    ours = {
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "PYVLLAMA_CACHE": str(home / "cache"),
    }
    command = [sys.executable, "-m", "pyvllama.cli.main", *map(str, arguments)]
    done = subprocess.run(
        command, env=clean | ours | environment, input="", capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
