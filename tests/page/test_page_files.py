"""The page's files: how they are served, and what is not in them."""

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from pyvllama.locate import pocket_samples
from pyvllama.server import page
from pyvllama.server.app import create_app
from pyvllama.server.settings import Settings

FILES = {path.name: path for path in sorted(page._FOLDER.iterdir())}
CODE = [path for path in FILES.values() if path.suffix in (".js", ".css", ".html")]
STRICT = {
    "content-security-policy": "script-src 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


def test_the_page_is_at_the_root(client: TestClient):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == FILES["index.html"].read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_what_it_is(client: TestClient, name: str):
    response = client.get(f"/page/{name}")
    types = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == types[FILES[name].suffix]
    assert response.content == FILES[name].read_bytes()
    for header, part in STRICT.items():
        assert part in response.headers[header]
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy


def test_what_the_browser_has_is_not_sent_again(client: TestClient):
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/page/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/page/dom.js").headers["etag"] != tag


def test_head_is_answered_without_a_body(client: TestClient):
    response = client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == FILES["index.html"].stat().st_size


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "..%5cpage.py", "samples/..%2fx", ""])
def test_nothing_else_can_be_named(client: TestClient, name: str):
    assert client.get(f"/page/{name}").status_code == 404


def test_samples_are_pictures_with_questions(client: TestClient):
    listed = client.get("/page/samples.json").json()
    assert [s["question"] for s in listed] == [question for _, question in pocket_samples()]
    for sample, (path, _) in zip(listed, pocket_samples(), strict=True):
        response = client.get(f"/page/samples/{sample['file']}")
        assert response.headers["content-type"] == "image/png"
        assert response.content == path.read_bytes()
    assert client.get("/page/samples/pocket-vllama-Q4_K_M.gguf").status_code == 404


def test_the_servers_application_has_the_page_without_a_key():
    client = TestClient(create_app(Settings(api_keys=("secret",))), base_url="http://localhost")
    assert client.get("/").status_code == 200
    assert client.get("/page/main.js").status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert not any(path == "/" or path.startswith("/page") for path in client.app.openapi()["paths"])


def test_every_file_that_is_named_exists():
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', FILES["index.html"].read_text(encoding="utf-8")))
    for path in FILES.values():
        if path.suffix == ".js":
            named |= set(re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")))
    assert named == set(FILES) - {"index.html"}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_code(path):
    text = path.read_text(encoding="utf-8")
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
    ):
        assert name not in text
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)", text)
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)


def test_icons_and_ids_that_are_used_exist_and_no_icon_is_idle():
    html = FILES["index.html"].read_text(encoding="utf-8")
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in CODE if path.suffix == ".js")
    ids = set(re.findall(r'\sid="([\w-]+)"', html))
    used = set(re.findall(r'byId\("([\w-]+)"\)', scripts))
    assert len(used) > 20
    assert used <= ids
    icons = {i.removeprefix("i-") for i in ids if i.startswith("i-")}
    named = set(re.findall(r'href="#i-(\w+)"', html)) | set(re.findall(r'(?:icon|iconButton)\("(\w+)"', scripts))
    chosen = {name for pair in re.findall(r'icon\(\w+ \? "(\w+)" : "(\w+)"\)', scripts) for name in pair}
    assert named | chosen == icons


def test_what_a_script_gives_others_is_taken():
    scripts = {path.name: path.read_text(encoding="utf-8") for path in CODE if path.suffix == ".js"}
    given = {
        (name, what)
        for name, text in scripts.items()
        for what in re.findall(r"^export (?:async )?(?:const|class|function\*?) (\w+)", text, re.MULTILINE)
    }
    taken = {
        (name, what)
        for text in scripts.values()
        for names, name in re.findall(r'^import \{ ([\w, ]+) \} from "\./([\w.-]+)"', text, re.MULTILINE)
        for what in names.split(", ")
    }
    assert len(given) > 40
    assert given == taken
