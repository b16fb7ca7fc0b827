"""`pyvllama.Llama.from_pretrained`: a hub of our own, the Hub's client, and what lies where afterwards."""

import json
import os
import shutil
import subprocess
import sys

import hub_server
import pytest

from pyvllama.integrations.from_hub import fetch_files
from pyvllama.locate import pocket_pair, pocket_picture

REPO = "some-org/Pocket-GGUF"
TEXT, MMPROJ = "Pocket-Q4_K_M.gguf", "mmproj-Pocket-Q8_0.gguf"
SAID = "A black ring at the left, a black cross in the centre"
PROGRAM = """
import json, sys
from contextlib import closing
from pyvllama import Llama
arguments, picture = json.loads(sys.argv[1]), sys.argv[2]
try:
    with closing(Llama.from_pretrained(**arguments, n_ctx=512, n_threads=1, verbose=False)) as llama:
        content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": "What is in the picture?"}]
        messages = [{"role": "user", "content": content if picture else "Who are you?"}]
        answer = {"path": llama.model_path}
        if not arguments.get("vocab_only"):
            made = llama.create_chat_completion(messages, temperature=0, max_tokens=40)
            answer["said"] = made["choices"][0]["message"]["content"]
except Exception as e:
    answer = {"error": type(e).__name__, "message": str(e)}
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def hub():
    with hub_server.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def repo(hub, tmp_path):
    """The bundled pair, and files beside it that must not be taken for it."""
    folder = hub.repositories[REPO] = tmp_path / "repo"
    (folder / "deep").mkdir(parents=True)
    pair = pocket_pair()
    shutil.copy(pair.text, folder / TEXT)
    shutil.copy(pair.mmproj, folder / MMPROJ)
    for name in ("Pocket-Q8_0.gguf", "mmproj-Pocket-F16.gguf", "imatrix-Pocket.gguf", "README.md", "deep/other.gguf"):
        (folder / name).write_bytes(b"something else")
    hub.requests.clear()
    return folder


@pytest.fixture
def load(hub, tmp_path):
    """load(filename=...) -> what came of it."""

    def run(picture=True, **arguments):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "PYVLLAMA_"))}
        ours = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        picture = str(pocket_picture()) if picture else ""
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps({"repo_id": REPO, **arguments}), picture],
            env=clean | ours, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def fetched(hub):
    return sorted(r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r)


@pytest.mark.parametrize("filename", [TEXT, "*Q4_K_M.gguf", None])
def test_it_comes_with_its_eyes(hub, load, filename):
    arguments = {} if filename is None else {"filename": filename}
    got = load(**arguments)
    assert got["said"].startswith(SAID)
    assert got["path"].endswith(f"/{TEXT}")
    assert fetched(hub) == [TEXT, MMPROJ]
    hub.requests.clear()
    assert load(**arguments) == got
    assert fetched(hub) == []  # all is in the cache


def test_other_places(hub, load, repo, tmp_path):
    """local_dir, cache_dir, additional files, and an mmproj by name."""
    shutil.copy(repo / MMPROJ, repo / "mmproj-Pocket-F16.gguf")
    got = load(
        filename=TEXT,
        local_dir=str(tmp_path / "here"),
        local_dir_use_symlinks=False,
        additional_files=["README.*", "deep/other.gguf"],
        mmproj_filename="*F16*",
    )
    assert got["said"].startswith(SAID)
    there = {p.relative_to(tmp_path / "here").as_posix() for p in (tmp_path / "here").rglob("*") if p.is_file()}
    assert {n for n in there if not n.startswith(".")} == {
        TEXT, "mmproj-Pocket-F16.gguf", "README.md", "deep/other.gguf"
    }  # fmt: skip
    assert load(filename=TEXT, cache_dir=str(tmp_path / "cache"))["path"].startswith(str(tmp_path / "cache"))


def test_an_mmproj_of_ones_own_or_none(hub, load):
    assert load(filename=TEXT, mmproj_path=str(pocket_pair().mmproj))["said"].startswith(SAID)
    assert fetched(hub) == [TEXT]
    assert "error" not in load(picture=False, filename=TEXT, vocab_only=True)


def test_a_text_file_in_two_parts(repo, hub, tmp_path, monkeypatch):
    for i in (1, 2):
        (repo / f"big-Q8_0-0000{i}-of-00002.gguf").write_bytes(b"part")
    monkeypatch.setattr("pyvllama.integrations.from_hub.check_mmproj", lambda path: None)
    asked = []

    def fetch(repo_id, revision, patterns, **places):
        asked.append(patterns)
        return repo

    monkeypatch.setattr("pyvllama.integrations.from_hub.fetch", fetch)
    listed = type("Listing", (), {"files": tuple(p.relative_to(repo).as_posix() for p in repo.rglob("*.*"))})
    monkeypatch.setattr("pyvllama.integrations.from_hub.list_files", lambda repo_id: listed)
    text, mmproj = fetch_files(REPO, "big-Q8_0*", None, None, None, None)
    assert text == repo / "big-Q8_0-00001-of-00002.gguf"
    assert mmproj == repo / MMPROJ
    assert asked[1] == ["big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"filename": "*Q3*"}, "ValueError", ["no file in", "'*Q3*'", TEXT]),
        ({"filename": "Pocket-*"}, "ValueError", ["2 files in", TEXT, "Pocket-Q8_0.gguf"]),
        ({"filename": TEXT, "additional_files": ["*.gguf"]}, "ValueError", ["files in", "'*.gguf'"]),
        ({"filename": TEXT, "mmproj_filename": "nothing"}, "ValueError", ["no file in", "'nothing'"]),
        ({"filename": TEXT, "mmproj_filename": "imatrix*"}, "FormatError", ["imatrix-Pocket.gguf"]),
        ({"repo_id": "some-org/nothing", "filename": TEXT}, "ModelNotFound", ["some-org/nothing"]),
    ],
    ids=str,
)
def test_what_is_refused(hub, load, arguments, error, words):
    got = load(**arguments)
    assert got["error"] == error
    for word in words:
        assert word in got["message"]
    assert TEXT not in fetched(hub)


def test_a_repository_without_eyes(load, repo, hub):
    for path in repo.glob("mmproj-*"):
        path.unlink()
    got = load(filename=TEXT)
    assert got["error"] == "ModelNotFound"
    assert "no mmproj" in got["message"]
    assert fetched(hub) == []
