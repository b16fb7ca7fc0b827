"""Models that come and go by Ollama's API: `pyvllama serve --ollama` as a program, a hub of our own."""

import asyncio
import json
import shutil
import threading

import httpx
import hub_server
import ollama
import pytest
from ollama_server import GREEDY, serving_program
from shell import wait_until

from pyvllama.errors import Cancelled
from pyvllama.hub_models import PairNames, fetch_pair
from pyvllama.locate import pocket_pair
from pyvllama.server.ollama.pulling import Pull

REPO = "somebody/Pocket-GGUF"
TEXT, MMPROJ = pocket_pair().text.name, pocket_pair().mmproj.name
OTHER = "pocket-vllama-Q8_0.gguf"


@pytest.fixture(scope="module")
def home(module_path):
    return module_path


@pytest.fixture(scope="module")
def hub(home):
    with hub_server.serve() as running:
        folder = running.repositories[REPO] = home / "repo"
        folder.mkdir()
        for name in (TEXT, OTHER):
            shutil.copy(pocket_pair().text, folder / name)
        shutil.copy(pocket_pair().mmproj, folder)
        yield running


@pytest.fixture(scope="module")
def url(hub, home):
    with serving_program(hub, home, "--ollama", "--alias", "llama3.2-vision", "--max-models", "2") as url:
        yield url


@pytest.fixture
def client(url):
    with ollama.Client(host=url) as client:
        yield client


def names(client):
    return {model.model for model in client.list().models}


def fetched(hub):
    return {r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r}


def question(picture):
    return [{"role": "user", "content": "How many shapes are there?", "images": [picture]}]


def test_pull_chat_delete(client, hub, picture):
    assert names(client) == {"llama3.2-vision:latest"}
    hub.requests.clear()
    steps = list(client.pull(f"hf.co/{REPO}", stream=True))
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    assert fetched(hub) == {TEXT, MMPROJ}
    for name, path in ((MMPROJ, pocket_pair().mmproj), (TEXT, pocket_pair().text)):
        of_file = [step for step in steps if step.status == f"pulling {name}"]
        assert len({step.digest for step in of_file}) == 1
        assert of_file[0].digest.startswith("sha256:")
        assert of_file[0].completed is None
        assert of_file[-1].completed == of_file[-1].total == path.stat().st_size
        done = [step.completed or 0 for step in of_file]
        assert done == sorted(done)

    assert names(client) == {"llama3.2-vision:latest", f"{REPO}:Q4_K_M"}
    for name in (f"hf.co/{REPO}", f"{REPO}:latest", f"{REPO}:q4_k_m", f"huggingface.co/{REPO}:Q4_K_M"):
        answer = client.chat(name, question(picture), options=GREEDY)
        assert (answer.model, answer.message.content) == (name, "There are 2 shapes.")
    assert client.show(f"hf.co/{REPO}").details.quantization_level == "Q4_K_M"
    assert f"{REPO}:Q4_K_M" in {model.model for model in client.ps().models}

    assert client.delete(f"hf.co/{REPO}:Q4_K_M").status == "success"  # it is in memory
    assert names(client) == {"llama3.2-vision:latest"}
    assert f"{REPO}:Q4_K_M" not in {model.model for model in client.ps().models}
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(REPO, question(picture))
    assert caught.value.status_code == 404
    assert client.chat("llama3.2-vision", question(picture), options=GREEDY).message.content == "There are 2 shapes."


def test_a_type_of_several(client, hub):
    assert client.pull(f"{REPO}:q8_0").status == "success"
    assert f"{REPO}:Q8_0" in names(client)
    assert client.pull(REPO).status == "success"
    assert names(client) >= {f"{REPO}:Q8_0", f"{REPO}:Q4_K_M"}
    hub.requests.clear()
    assert client.pull(REPO).status == "success"  # again: nothing is fetched
    assert fetched(hub) == set()
    for kind in ("Q8_0", "Q4_K_M"):
        client.delete(f"{REPO}:{kind}")
    assert names(client) == {"llama3.2-vision:latest"}


def test_the_served_model_needs_no_pull_and_stays(client):
    for name in ("llama3.2-vision", "llama3.2-vision:latest", "pocket-vllama"):
        assert client.pull(name).status == "success"
    with pytest.raises(ollama.ResponseError, match="what the server was started with") as caught:
        client.delete("llama3.2-vision")
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("llama3.2", 404, "has no access to Ollama's library"),
        ("../../etc/passwd", 404, "has no access to Ollama's library"),
        ("nobody/nothing", 404, "neither a local directory nor a repository"),
        (f"{REPO}:IQ2_XS", 404, "no text file of type IQ2_XS"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_had(client, name, status, words, stream):
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        list(client.pull(name, stream=stream))
    assert caught.value.status_code == status


def test_a_download_that_fails_on_its_way(client, hub):
    """Gated: the files are listed, but not given. The status is sent by then."""
    hub.gated.add(REPO)
    try:
        with pytest.raises(ollama.ResponseError, match="accept its licence"):
            list(client.pull(REPO, stream=True))
        with pytest.raises(ollama.ResponseError, match="accept its licence") as caught:
            client.pull(REPO)
        assert caught.value.status_code == 404
    finally:
        hub.gated.clear()


def test_deleting_what_is_not_there(url, client):
    for name, status in (("nope", 404), ("", 400), ("../../etc", 404)):
        body = json.dumps({"name": name})  # the older word
        response = httpx.request("DELETE", f"{url}/api/delete", content=body)
        assert response.status_code == status
        assert list(response.json()) == ["error"]


# --- without a server ---


@pytest.fixture
def hub_client(hub, tmp_path, monkeypatch):
    """The Hub's client of this process, with that hub and a cache of its own."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, False)


def test_a_stopped_download_is_asked_for_again(hub, hub_client):
    told = []

    def stop_in_the_first(name, done, total):
        told.append((name, done, total))
        return len(told) < 2

    names = PairNames((TEXT,), MMPROJ)
    with pytest.raises(Cancelled, match="fetches only the files that are not complete"):
        fetch_pair(REPO, names, progress=stop_in_the_first)
    assert told[0] == (MMPROJ, 0, None)
    assert len(told) == 2
    with pytest.raises(Cancelled):
        fetch_pair(REPO, names, progress=lambda name, *_: name == MMPROJ)
    hub.requests.clear()
    pair = fetch_pair(REPO, names, progress=lambda *_: True)
    assert fetched(hub) == {TEXT}
    assert pair.text.read_bytes() == pocket_pair().text.read_bytes()
    assert pair.mmproj.read_bytes() == pocket_pair().mmproj.read_bytes()


def test_a_client_that_goes_away_stops_the_download(hub, hub_client):
    async def leave():
        steps = Pull(REPO, PairNames((TEXT, OTHER), MMPROJ)).steps()
        said = [await anext(steps), await anext(steps)]
        await steps.aclose()
        return [step.status for step in said]

    hub.requests.clear()
    assert asyncio.run(leave()) == ["pulling manifest", f"pulling {MMPROJ}"]
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "pyvllama-pull"])
    assert not fetched(hub) & {TEXT, OTHER}
