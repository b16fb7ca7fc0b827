"""The web page at `/`: its files, and the pocket model's sample pictures, with the headers that keep it to itself."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from pyvllama.locate import pocket_samples

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_METHODS = ["GET", "HEAD"]
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # No script may turn text into markup, by innerHTML or otherwise: an answer stays text, whatever it holds.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@router.api_route("/", methods=_METHODS)
def get_page(request: Request) -> Response:
    """The page."""
    return _file(_FILES["index.html"], request)


@router.api_route("/page/samples.json", methods=_METHODS)
def get_samples() -> Response:
    """What the pocket model can be asked: [{"file": below /page/samples/, "question": ...}]."""
    samples = [{"file": path.name, "question": question} for path, question in pocket_samples()]
    return JSONResponse(samples, headers={**_HEADERS, "Cache-Control": "no-cache"})


@router.api_route("/page/samples/{name}", methods=_METHODS)
def get_sample(name: str, request: Request) -> Response:
    """One of the pocket model's sample pictures."""
    return _file(_named(name, {path.name: path for path, _ in pocket_samples()}), request)


@router.api_route("/page/{name}", methods=_METHODS)
def get_file(name: str, request: Request) -> Response:
    """One of the page's files."""
    return _file(_named(name, _FILES), request)


def _named(name: str, files: dict[str, Path]) -> Path:
    if name not in files:  # a table, not a path: nothing outside it can be named
        raise HTTPException(404, "the page has no such file")
    return files[name]


def _file(path: Path, request: Request) -> Response:
    """The file, or 304 where the browser has it. It asks each time, so a new version shows at once."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag, "Cache-Control": "no-cache"}
    known = [known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES[path.suffix], headers=headers)
