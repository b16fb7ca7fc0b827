"""The curl lines of the README, as they stand there, against Ollama's API."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ANSWER = "The star is blue."
BLOCK = r"""
curl http://localhost:11434/api/chat -d '{
  "model": "llama3.2-vision", "stream": false,
  "messages": [{"role": "user", "content": "What colour is the star?",
                "images": ["'$(base64 < pyvllama/pocket/shapes.png | tr -d '\n')'"]}]
}'
curl http://localhost:11434/api/generate -d '{
  "model": "llama3.2-vision", "prompt": "What colour is the star?",
  "images": ["'$(base64 < pyvllama/pocket/shapes.png | tr -d '\n')'"]
}'
curl http://localhost:11434/api/chat -d '{
  "model": "llama3.2-vision", "stream": false, "messages": [{"role": "user", "content": "Hello!"}],
  "format": {"type": "object", "properties": {"friendly": {"type": "boolean"}}, "required": ["friendly"]}
}'
curl http://localhost:11434/api/tags
curl http://localhost:11434/api/show -d '{"model": "llama3.2-vision"}'
curl http://localhost:11434/api/ps
curl http://localhost:11434/api/generate -d '{"model": "llama3.2-vision", "keep_alive": 0}'
"""
WHOLE, STREAM, SCHEMA, TAGS, SHOW, PS, UNLOAD = re.split(r"\n(?=curl)", BLOCK.rstrip())[1:]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def run(ollama_server):
    def call(command):
        command = command.replace("http://localhost:11434", ollama_server.url)
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def test_a_question_about_a_picture(run):
    (answer,) = run(WHOLE)
    assert answer["message"]["content"] == ANSWER
    assert answer["image_encode_duration"] > 0


def test_a_stream(run):
    *pieces, last = run(STREAM)
    assert "".join(piece["response"] for piece in pieces) == ANSWER
    assert last["done"]
    assert last["eval_count"] == len(pieces) + 1  # and the end token


def test_a_schema(run):
    (answer,) = run(SCHEMA)
    assert isinstance(json.loads(answer["message"]["content"])["friendly"], bool)


def test_models(run):
    assert [model["name"] for model in run(TAGS)[0]["models"]] == ["llama3.2-vision:latest"]
    assert run(SHOW)[0]["capabilities"] == ["completion", "vision", "tools"]
    assert [model["name"] for model in run(PS)[0]["models"]] == ["llama3.2-vision:latest"]
    assert run(UNLOAD)[0]["done_reason"] == "unload"
    assert run(PS) == [{"models": []}]


def test_they_are_the_readme_s():
    assert f"```sh{BLOCK}```" in README
