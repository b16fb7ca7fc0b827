"""`/v1/models`, and the addresses that are llama-server's."""

import openai
import pytest
from openai.types import Model
from openai_talk import RINGS, connect, picture, said

from pyvllama.types import SamplingParams


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    return server.client


# --- models ---


def test_models_are_listed(client):
    models = client.models.list().data
    assert isinstance(models[0], Model)
    assert (models[0].id, models[0].object, models[0].owned_by) == ("pocket-vllama", "model", "pyvllama")
    assert models[0].created > 1_600_000_000
    assert models[0].meta["size"] > 1_000_000
    assert len({model.id for model in models}) == len(models)


def test_one_model(client):
    listed = client.models.list().data[0]
    assert client.models.retrieve("pocket-vllama") == listed
    assert client.models.retrieve("pocket-vllama:latest") == listed
    for alias in listed.meta["aliases"]:
        assert client.models.retrieve(alias) == listed
    for name in ("gpt-4o", "meta-llama/Llama-3.2", "../x", "%2e%2e"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_no_path_of_this_machine_is_told(http, pocket_checkpoint):
    for address in ("/v1/models", "/props"):
        text = http.get(address).text
        assert str(pocket_checkpoint.parent) not in text
        assert "/work" not in text
        assert "/home" not in text


# --- llama-server's ---


def test_props(http, server):
    got = http.get("/props").json()
    served = server.app.state.pool.loaded()[0].served
    assert got["default_generation_settings"]["n_ctx"] == served.n_ctx
    params = got["default_generation_settings"]["params"]
    assert (params["temperature"], params["n_predict"]) == (0.0, -1)
    assert params["top_p"] == SamplingParams().top_p
    assert got["total_slots"] == served.n_slots
    assert got["chat_template"] == served.model.template.source
    assert got["modalities"] == {"vision": True, "audio": False}
    assert (got["bos_token"], got["eos_token"]) == ("<|begin_of_text|>", "<|eot_id|>")
    assert got["model_path"].endswith(".gguf")
    assert "/" not in got["model_path"]
    assert http.get("/props", params={"model": "pocket-vllama"}).json() == got
    assert http.get("/props", params={"model": "nope"}).status_code == 404


@pytest.mark.parametrize("text", ["Hello, world!", "", "é ñ 你好 🎉", "  \n\t ", "<|eot_id|>"])
def test_text_to_tokens_and_back(http, text):
    tokens = http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}
    pieces = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == tokens
    data = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert data.decode() == text


def test_tokenize_options(http, server):
    tokenizer = server.app.state.pool.loaded()[0].served.model.tokenizer

    def tokens(content, **options):
        return http.post("/tokenize", json={"content": content, **options}).json()["tokens"]

    (end,) = tokenizer.tokenize("<|eot_id|>", parse_special=True)
    assert tokens("<|eot_id|>") == [end]
    assert tokens("<|eot_id|>", parse_special=False) == tokenizer.tokenize("<|eot_id|>") != [end]
    assert tokens("Hello", add_special=True) == [tokenizer.bos, *tokenizer.tokenize("Hello")]
    assert tokens(["Hello", end, " you"]) == [*tokenizer.tokenize("Hello"), end, *tokenizer.tokenize(" you")]
    halves = http.post("/tokenize", json={"content": "é", "with_pieces": True}).json()["tokens"]
    assert [half["piece"] for half in halves] == [[0xC3], [0xA9]], "bytes where they are no text"


def test_a_template_is_applied(http, client, samples):
    conversation = [
        {"role": "system", "content": "Be brief."},
        said(picture(samples[0]["path"]), "Describe the image."),
    ]
    prompt = http.post("/apply-template", json={"messages": conversation}).json()["prompt"]
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<|image|>Describe the image.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    got = client.chat.completions.create(model="", messages=conversation, temperature=0)
    assert got.choices[0].message.content == RINGS
    tokens = http.post("/tokenize", json={"content": prompt}).json()["tokens"]
    assert got.usage.prompt_tokens == len(tokens)


def test_a_template_and_a_text_make_a_completion(http, client):
    prompt = http.post("/apply-template", json={"messages": [said("Hello!")]}).json()["prompt"]
    got = client.completions.create(model="", prompt=prompt, temperature=0)
    assert got.choices[0].text == "Hello! Please show me an image."


@pytest.mark.parametrize(
    ("address", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "x", "with_pieces": "yes"}, "with_pieces"),
        ("/tokenize", {"content": [999999]}, "content"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [999999]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": [said("")]}, "messages[0].content"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong(http, address, body, param):
    got = http.post(address, json=body)
    assert got.status_code == 400
    assert (got.json()["error"]["type"], got.json()["error"]["param"]) == ("invalid_request_error", param)
