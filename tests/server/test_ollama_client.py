"""Ollama's API as its own Python client sees it: what apps get that were written for llama3.2-vision on Ollama."""

import asyncio
import base64
import json
import time
from datetime import datetime, timezone
from pathlib import Path

import httpx
import ollama
import pytest
from ollama_server import N_CTX, serving

from pyvllama.server.model_list import ModelCard

NAME = "llama3.2-vision"
ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."
GREEDY = {"temperature": 0}
NOW_S = 60  # how far two clocks may differ


@pytest.fixture(scope="module")
def server():
    with serving(aliases=(NAME,)) as running:
        yield running


@pytest.fixture
def client(server):
    with ollama.Client(host=server.url) as client:
        yield client


@pytest.fixture(scope="session")
def picture(pocket_checkpoint) -> Path:
    return pocket_checkpoint / "samples" / "01_square.png"


@pytest.fixture
def pictures(pocket_checkpoint):
    return lambda name: pocket_checkpoint / "samples" / name


def ask(question, *images):
    return {"role": "user", "content": question, "images": list(images)}


def check_costs(answer, *, n_tokens=None):
    """The last piece of an answer says what it did cost; times in nanoseconds, so parts fit into the whole."""
    assert answer.done
    assert answer.prompt_eval_count > 0
    assert answer.eval_count == n_tokens or n_tokens is None
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(part >= 0 for part in parts)
    assert 1e5 < sum(parts) <= answer.total_duration < 60e9
    made = datetime.fromisoformat(answer.created_at.replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - made).total_seconds()) < NOW_S


# --- chat ---


@pytest.mark.parametrize("form", ["path", "text", "bytes", "base64"])
def test_a_question_about_a_picture(client, picture, form):
    data = picture.read_bytes()
    image = {"path": picture, "text": str(picture), "bytes": data, "base64": base64.b64encode(data).decode()}[form]
    answer = client.chat(NAME, [ask("Describe the image.", image)], options=GREEDY)
    assert answer.message.role == "assistant"
    assert answer.message.content == ANSWER
    assert (answer.model, answer.done_reason) == (NAME, "stop")
    check_costs(answer)


def test_a_stream(client, picture):
    pieces = list(client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, stream=True))
    *body, last = pieces
    assert len(body) > 10
    assert "".join(piece.message.content for piece in body) == ANSWER
    assert all(piece.message.content and not piece.done and piece.done_reason is None for piece in body)
    assert (last.message.content, last.done_reason) == ("", "stop")
    check_costs(last)
    whole = client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY)
    assert (whole.eval_count, whole.prompt_eval_count) == (last.eval_count, last.prompt_eval_count)


def test_what_goes_over_the_wire(server, picture):
    image = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    body = {"model": NAME, "messages": [ask("Describe the image.", image)], "options": GREEDY}
    response = httpx.post(f"{server.url}/api/chat", content=json.dumps(body))
    assert response.headers["content-type"] == "application/x-ndjson"  # streaming is the default
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert set(lines[0]) == {"model", "created_at", "done", "message"}
    assert lines[0]["message"] == {"role": "assistant", "content": "A"}
    assert set(lines[-1]) == {
        "model", "created_at", "done", "done_reason", "message", "total_duration", "load_duration",
        "image_encode_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    }  # fmt: skip
    assert all(isinstance(lines[-1][key], int) for key in lines[-1] if key.endswith(("_duration", "_count")))


def test_the_image_encoding_is_told(server, pictures):
    body = {
        "model": NAME,
        "stream": False,
        "messages": [ask("Describe the image.", base64.b64encode(pictures("02_wide.png").read_bytes()).decode())],
    }
    first, second = (httpx.post(f"{server.url}/api/chat", json=body).json() for _ in range(2))
    assert first["message"] == second["message"]
    assert 1e6 < first["image_encode_duration"] < first["total_duration"]  # milliseconds, in nanoseconds
    assert second["image_encode_duration"] == 0  # known by then


def test_several_turns(client, samples):
    """The picture is sent with the first turn only, as apps do that keep the whole conversation."""
    for sample in samples[:3]:
        messages = []
        for i, qa in enumerate(sample["qa"]):
            messages.append(ask(qa["question"], *([sample["path"]] if i == 0 else [])))
            answer = client.chat(NAME, messages, options=GREEDY)
            if i == 0:
                assert answer.message.content == qa["expected"]
            assert answer.message.content
            messages.append(answer.message)
        assert [m["role"] for m in messages] == ["user", "assistant"] * 4


def test_a_new_picture_in_a_later_turn(client, samples):
    messages = []
    for sample in samples[:3]:
        qa = sample["qa"][0]
        messages.append(ask(qa["question"], sample["path"]))
        answer = client.chat(NAME, messages, options=GREEDY)
        assert answer.message.content == qa["expected"]
        messages.append(answer.message)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_begun(client, picture, stream):
    """Open WebUI's "continue" sends it back."""
    asked = [ask("Describe the image.", picture), {"role": "assistant", "content": "A yellow ring"}]
    got = client.chat(NAME, asked, options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    assert "A yellow ring" + "".join(piece.message.content for piece in pieces) == ANSWER
    long = [*[ask("Hello! " * 100), {"role": "assistant", "content": "Hello."}] * 10, *asked]
    shortened = client.chat(NAME, long, options={**GREEDY, "num_predict": 40})
    assert shortened.message.content
    assert shortened.prompt_eval_count <= N_CTX


def test_several_pictures_in_a_message(client, picture, pictures):
    """Ollama's runner for this model refused more than one."""
    both = client.chat(NAME, [ask("Describe the image.", picture, pictures("02_wide.png"))], options=GREEDY)
    one = client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY)
    assert both.prompt_eval_count == one.prompt_eval_count + 1  # a picture is one token
    assert both.message.content


def test_a_system_prompt(client, picture):
    plain = [ask("Describe the image.", picture)]
    with_system = [{"role": "system", "content": "You are a careful observer."}, *plain]
    answer = client.chat(NAME, with_system, options=GREEDY)
    assert "yellow ring" in answer.message.content
    assert answer.prompt_eval_count > client.chat(NAME, plain, options=GREEDY).prompt_eval_count


@pytest.mark.parametrize("stream", [False, True])
def test_num_predict_and_stop(client, picture, stream):
    def text_and_reason(**options):
        got = client.chat(
            NAME, [ask("Describe the image.", picture)], options={**GREEDY, **options}, stream=stream, keep_alive="5m"
        )
        pieces = list(got) if stream else [got]
        return "".join(piece.message.content for piece in pieces), pieces[-1].done_reason

    assert text_and_reason(num_predict=3) == ("A yellow ring", "length")
    assert text_and_reason(stop=["at the"]) == ("A yellow ring ", "stop")
    assert text_and_reason(num_predict=-1, num_ctx=131072, num_gpu=99) == (ANSWER, "stop")


def test_a_seed_repeats_an_answer(client, picture):
    def said(seed):
        options = {"temperature": 5.0, "top_p": 1.0, "seed": seed, "num_predict": 12}
        return client.chat(NAME, [ask("Describe the image.", picture)], options=options).message.content

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(6)}) > 1


def test_logprobs(client, picture):
    def chat(**options):
        return client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, **options)

    assert chat().logprobs is None
    plain = chat(logprobs=True).logprobs
    assert "".join(entry.token for entry in plain).removesuffix("<|eot_id|>") == ANSWER
    assert all(-0.1 < entry.logprob <= 0 and entry.top_logprobs is None for entry in plain)
    pieces = list(chat(logprobs=True, top_logprobs=3, stream=True))
    entries = [entry for piece in pieces for entry in piece.logprobs or ()]
    assert [entry.token for entry in entries] == [entry.token for entry in plain]
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in entries)


def test_an_answer_in_json(client, picture):
    answer = client.chat(
        NAME, [ask("Describe the image.", picture)], options={**GREEDY, "num_predict": 300}, format="json"
    )
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    else:
        assert answer.message.content.lstrip()[:1] == "{"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_by_a_schema(client, picture, stream):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["yellow", "green"]}, "n": {"enum": [1, 2, 3]}},
        "required": ["colour", "n"],
    }
    got = client.chat(NAME, [ask("What colour is the ring?", picture)], options=GREEDY, format=schema, stream=stream)
    pieces = list(got) if stream else [got]
    found = json.loads("".join(piece.message.content for piece in pieces))
    assert found.keys() == {"colour", "n"}
    assert found["colour"] in ("yellow", "green")
    assert found["n"] in (1, 2, 3)


def weather(city: str, days: int) -> str:
    """Weather of the next days.

    Args:
        city: where.
        days: how many.
    """


def test_tools_that_need_not_be_called(client, picture):
    """The pocket model never calls one by itself."""
    plain = [ask("Describe the image.", picture)]
    assert client.chat(NAME, plain, tools=[weather], options=GREEDY).message.content == ANSWER
    pieces = list(client.chat(NAME, plain, tools=[weather], options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(client, monkeypatch, stream):
    """It is made to call one: what is tested is the way there and back."""
    from pyvllama.chat_options import ChatOptions
    from pyvllama.server.ollama import chat

    class MustCall(ChatOptions):
        @classmethod
        def from_options(cls, defaults, options):
            return ChatOptions.from_options(defaults, {**options, "tool_choice": "required"})

    monkeypatch.setattr(chat, "ChatOptions", MustCall)
    city = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
            },
        },
    }
    question = {"role": "user", "content": "What is the weather like?"}
    got = client.chat(NAME, [question], tools=[city], options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    (call,) = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert call.function.name == "weather"
    assert call.function.arguments["city"] in ("Rome", "Oslo")  # an object
    assert call.function.arguments["days"] in (1, 2)
    assert not any(piece.message.content for piece in pieces)
    assert pieces[-1].done_reason == "stop"
    monkeypatch.undo()

    told = {"role": "tool", "tool_name": "weather", "content": "11 degrees"}
    message = ollama.Message(role="assistant", content="", tool_calls=[call])
    assert client.chat(NAME, [question, message, told], tools=[city], options=GREEDY).message.content


def test_a_format_beside_tools(client):
    """Ollama lets the format decide what the answer looks like; so the tools are only shown."""
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    answer = client.chat(NAME, [ask("How many?")], tools=[weather], format=schema, options=GREEDY)
    assert json.loads(answer.message.content)["n"] in (1, 2)


def test_long_conversations_lose_their_oldest_turns(client, server):
    turn = [ask("Hello! " * 100), {"role": "assistant", "content": "Hello. " * 100}]
    long = [*turn * 8, ask("Hello!")]
    answer = client.chat(NAME, long, options={**GREEDY, "num_predict": 5})
    assert answer.prompt_eval_count <= N_CTX
    refused = httpx.post(
        f"{server.url}/api/chat", json={"model": NAME, "messages": long, "truncate": False, "stream": False}
    )
    assert refused.status_code == 400
    assert str(N_CTX) in refused.json()["error"]


# --- generate ---


@pytest.mark.parametrize("stream", [False, True])
def test_generate(client, picture, stream):
    got = client.generate(NAME, "Describe the image.", images=[picture], options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    assert "".join(piece.response for piece in pieces) == ANSWER
    assert pieces[-1].done_reason == "stop"
    assert all(piece.context is None for piece in pieces[:-1])
    check_costs(pieces[-1])


def test_generate_is_a_chat_of_one_turn(client, picture):
    chat = client.chat(
        NAME, [{"role": "system", "content": "Be brief."}, ask("Describe the image.", picture)], options=GREEDY
    )
    prompt = client.generate(NAME, "Describe the image.", system="Be brief.", images=[picture], options=GREEDY)
    assert prompt.response == chat.message.content
    assert (prompt.prompt_eval_count, prompt.eval_count) == (chat.prompt_eval_count, chat.eval_count)


def test_context_goes_on(client, server):
    """The same as a chat of these turns."""
    first = client.generate(NAME, "Hello!", options=GREEDY)
    second = client.generate(NAME, "How are you?", context=first.context, options=GREEDY)
    messages = [ask("Hello!"), {"role": "assistant", "content": first.response}, ask("How are you?")]
    chat = client.chat(NAME, messages, options=GREEDY)
    assert second.response == chat.message.content
    assert second.prompt_eval_count == chat.prompt_eval_count
    assert second.context[: len(first.context)] == first.context


def test_context_bears_no_pictures(client, server, picture):
    first = client.generate(NAME, "Describe the image.", images=[picture], options=GREEDY)
    served = server.app.state.pool.loaded()[0].served
    assert served.model.image_token not in first.context
    second = client.generate(NAME, "Describe the image.", context=first.context, images=[picture], options=GREEDY)
    assert second.response == ANSWER
    with_token = [*first.context, served.model.image_token]
    assert client.generate(NAME, "Hello!", context=with_token, options=GREEDY).response


def test_raw(client, server, picture):
    served = server.app.state.pool.loaded()[0].served
    from pyvllama.server.ollama.messages import openai_messages
    from pyvllama.server.ollama.schema import Message

    messages = openai_messages([Message(role="user", content="Describe the image.")])
    text = served.model.template.render(messages).removeprefix("<|begin_of_text|>")
    head, tail = text.split("Describe")
    for prompt in (f"{head}<|image|>Describe{tail}", text):
        answer = client.generate(NAME, prompt, raw=True, images=[picture], options=GREEDY)
        assert answer.response == ANSWER if "<|image|>" in prompt else answer.response
        assert answer.context is None
    plain = client.generate(NAME, "Once upon", raw=True, options={**GREEDY, "num_predict": 3})
    assert plain.eval_count == 3


# --- loading ---


def test_load_and_unload(client, server):
    pool = server.app.state.pool
    for load in (lambda **o: client.generate(NAME, **o), lambda **o: client.chat(NAME, **o)):
        assert load(keep_alive=0).done_reason == "unload"
        assert client.ps().models == []
        assert pool.loaded() == []
        assert load(keep_alive=0).done_reason == "unload"  # it was not there
        assert load().done_reason == "load"
        (running,) = client.ps().models
        assert running.model == f"{NAME}:latest"


def test_keep_alive(client, picture):
    def left_s():
        (running,) = client.ps().models
        return (running.expires_at - datetime.now(timezone.utc)).total_seconds()

    client.chat(NAME, [], keep_alive="10m")
    assert 590 < left_s() <= 600
    client.generate(NAME, "Hello!", keep_alive=30, options={"num_predict": 1})
    assert 20 < left_s() <= 30
    client.chat(NAME, [], keep_alive=-1)
    assert left_s() > 1e9
    client.chat(NAME, [ask("Describe the image.", picture)], keep_alive=0, options=GREEDY)
    until(lambda: client.ps().models == [])
    assert (
        client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, keep_alive=-1).message.content
        == ANSWER
    )


def until(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- which models there are ---


def test_list(client, server):
    listed = client.list().models
    assert [model.model for model in listed] == [f"{NAME}:latest"]
    (model,) = listed
    card = server.app.state.pool.card(None)
    assert model.size == card.n_bytes == sum(path.stat().st_size for path in (card.pair.text, card.pair.mmproj))
    assert model.modified_at == card.modified
    assert len(model.digest) == 64
    details = model.details
    assert (details.format, details.family, details.families) == ("gguf", "mllama", ["mllama"])
    assert (details.parameter_size, details.quantization_level) == ("12.74M", "Q4_K_M")


def test_an_alias_beside_the_first_name(pocket_checkpoint):
    with serving(aliases=("one", "two:11b")) as running, ollama.Client(host=running.url) as client:
        assert sorted(model.model for model in client.list().models) == ["one:latest", "two:11b"]
        assert len({model.digest for model in client.list().models}) == 1
        for name in ("one", "one:latest", "two:11b", "TWO:11b", "pocket-vllama"):
            assert client.chat(name, [ask("Hello!")], options=GREEDY).model == name
        with pytest.raises(ollama.ResponseError):
            client.chat("two", [ask("Hello!")])


def test_show(client, server):
    model = client.show(NAME)
    info = model.modelinfo
    assert info["general.architecture"] == "llama"
    assert info["llama.context_length"] == 131072
    assert info["general.parameter_count"] == 12_736_685
    assert info["tokenizer.ggml.tokens"] == []  # long: with verbose only
    assert "general.name" not in info
    assert "tokenizer.chat_template" not in info
    assert set(model.capabilities) == {"completion", "vision", "tools"}
    assert "start_header_id" in model.template
    assert model.parameters == f"{'temperature':<30} 0"
    assert model.details.family == "mllama"
    raw = httpx.post(f"{server.url}/api/show", json={"name": NAME, "verbose": True}).json()
    assert len(raw["model_info"]["tokenizer.ggml.tokens"]) > 1000
    assert raw["projector_info"]["clip.projector_type"] == "mllama"
    tensors = {t["name"]: t for t in raw["tensors"]}
    assert tensors["token_embd.weight"]["shape"][0] == info["llama.embedding_length"]  # ggml's order
    assert "v.patch_embd.weight" in tensors


def test_ps(client):
    client.chat(NAME, [], keep_alive=-1)
    (model,) = client.ps().models
    assert (model.model, model.name, model.context_length) == (f"{NAME}:latest", f"{NAME}:latest", N_CTX)
    assert model.size == client.list().models[0].size
    assert model.size_vram == 0
    assert model.digest == client.list().models[0].digest


def test_version_and_life_signs(server):
    body = httpx.get(f"{server.url}/api/version").json()
    assert body["version"] == "0.24.0"
    assert body["server"].startswith("pyvllama ")  # who it really is
    for path in ("/", "/api/version", "/api/tags"):
        response = httpx.head(f"{server.url}{path}")
        assert (response.status_code, response.content) == (200, b"")


# --- what goes wrong ---


def refusal(call, *args, **kwargs):
    with pytest.raises(ollama.ResponseError) as caught:
        found = call(*args, **kwargs)
        if kwargs.get("stream"):
            list(found)
    return caught.value.status_code, caught.value.error


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_models(client, stream):
    for name in ("nope", "nope:latest", "../../etc/passwd", str(Path(__file__)), "hf.co/somebody/else", "llama3.2"):
        words = (404, f'model "{name}" not found, try pulling it first')
        assert refusal(client.chat, name, [ask("Hi")], stream=stream) == words
        assert refusal(client.generate, name, "Hi", stream=stream) == words
    for call in (client.show, client.chat, client.generate):
        assert refusal(call, "nope") == (404, 'model "nope" not found, try pulling it first')
    assert refusal(client.chat, "nope", keep_alive=0)[0] == 404


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_cannot_be_answered(client, stream):
    """Before anything is streamed: with a status."""
    bad = base64.b64encode(b"no picture at all").decode()
    for call, words in [
        (lambda: client.chat(NAME, [ask("Hi", bad)], stream=stream), "it is text"),
        (lambda: client.generate(NAME, "Hi", images=[bad], stream=stream), "it is text"),
        (lambda: client.chat(NAME, [ask("")], stream=stream), "needs text or an image"),
        (lambda: client.generate(NAME, "Hi " * 3000, stream=stream), str(N_CTX)),
        (lambda: client.generate(NAME, "Hi", suffix="!", stream=stream), "does not support insert"),
        (lambda: client.generate(NAME, "Hi", template="{{ .Prompt }}", stream=stream), "raw: true"),
        (lambda: client.generate(NAME, "Hi", raw=True, system="x", stream=stream), "raw mode does not support"),
        (lambda: client.generate(NAME, "<|image|>", raw=True, stream=stream), "1 image tokens for 0 pictures"),
        (lambda: client.generate(NAME, "Hi", context=[10**9], stream=stream), "there is no token 1000000000"),
        (lambda: client.generate(NAME, "Hi", context=[-1], stream=stream), "there is no token -1"),
        (lambda: client.chat(NAME, [ask("Hi")], format={"type": "no such"}, stream=stream), "cannot be made a grammar"),
        (lambda: client.chat(NAME, [ask("Hi")], keep_alive="soon", stream=stream), "keep_alive"),
        (lambda: client.chat(NAME, [ask("Hi")], top_logprobs=21, logprobs=True, stream=stream), "top_logprobs"),
        (lambda: client.chat(NAME, [{"role": "robot", "content": "Hi"}], stream=stream), "messages[0].role"),
        (lambda: client.chat(NAME, [ask("Hi")], options={"seed": "x"}, stream=stream), "options.seed"),
    ]:
        status, error = refusal(lambda call=call, **_: call(), stream=stream)
        assert (status, words in error) == (400, True), error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a JSON body is required"),
        (b"{", "the body is no valid JSON"),
        (b"[]", "valid dictionary"),
        (b"{}", "model: is required"),
        (b'{"model": ""}', "model is required"),
        (b'{"model": 1}', "model: "),
        (b'{"model": "x", "options": {"temperature": NaN}}', "options.temperature"),
        (b'{"model": "x", "messages": ' + b"[" * 100000 + b"}", ""),
        (b'\xff\xfe{"model"', ""),
        (b'{"model": "\\ud800"}', ""),
    ],
)
def test_broken_requests(server, content, words):
    for path in ("chat", "generate", "show"):
        if path == "show" and words == "model: is required":
            continue  # `name` would do as well
        response = httpx.post(f"{server.url}/api/{path}", content=content)
        assert response.status_code in (400, 404)
        body = response.json()
        assert list(body) == ["error"]
        assert path == "show" or words in body["error"]


def test_what_is_not_there(server):
    for method, path in [
        ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("POST", "/api/create"), ("POST", "/api/copy"),
        ("POST", "/api/push"), ("POST", "/api/blobs/sha256:0"),
    ]:  # fmt: skip
        response = httpx.request(method, f"{server.url}{path}", json={"model": NAME})
        assert response.status_code == 501
        assert "is not supported: " in response.json()["error"]
    assert httpx.head(f"{server.url}/api/blobs/sha256:0").status_code == 501


def test_management_needs_leave(client):
    for call in (client.pull, client.delete):
        status, error = refusal(call, "somebody/Repo")
        assert status == 403
        assert "start it with --ollama" in error
    assert refusal(client.delete, NAME)[0] == 403
    assert client.pull(NAME).status == "success"  # it is here: apps pull before they ask
    assert [step.status for step in client.pull(NAME, stream=True)] == ["success"]


def test_a_body_is_json_whatever_it_is_called(server):
    body = json.dumps({"model": NAME, "messages": []})
    for kind in (None, "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/json"):
        headers = {} if kind is None else {"Content-Type": kind}
        response = httpx.post(f"{server.url}/api/chat", content=body, headers=headers)
        assert response.json()["done_reason"] == "load"


def test_the_log_says_what_an_answer_did_cost(client, caplog):
    caplog.set_level("INFO", logger="pyvllama.server")
    client.chat(NAME, [ask("Hello!")], options={"num_ctx": 131072})
    list(client.generate(NAME, "Hello!", options={"num_ctx": 1024}, stream=True))
    until(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) == 2)
    first, second = (r.fields for r in caplog.records if r.getMessage() == "request")
    assert (first["path"], first["model"], first["num_ctx_ignored"]) == ("/api/chat", NAME, 131072)
    assert (second["path"], second["model"]) == ("/api/generate", NAME)
    assert "num_ctx_ignored" not in second
    assert first["predicted_n"] > 0
    assert second["predicted_n"] > 0
    assert "Hello" not in str((first, second))


def test_behind_a_key(picture):
    with (
        serving(aliases=(NAME,), api_keys=("secret",)) as running,
        ollama.Client(host=running.url, headers={"Authorization": "Bearer secret"}) as known,
        ollama.Client(host=running.url) as stranger,
    ):
        assert known.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY).message.content == ANSWER
        status, error = refusal(stranger.chat, NAME, [ask("Hi")])
        assert (status, "API key" in error) == (401, True)


def test_foreign_web_pages_are_kept_out(server):
    """A form needs no preflight, and its body would be taken for JSON."""
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    response = httpx.post(f"{server.url}/api/chat", content=json.dumps({"model": NAME}), headers=headers)
    assert response.status_code == 403
    assert "origin" in response.json()["error"]


def test_an_error_on_the_way_is_the_last_line(client, server, monkeypatch):
    from pyvllama.errors import BackendError
    from pyvllama.server.answer import Answer

    real = Answer.batches

    async def failing(self, idle_s=None):
        async for batch in real(self, idle_s):
            yield batch
            raise BackendError("the machine is on fire")

    monkeypatch.setattr(Answer, "batches", failing)
    pieces = []
    with pytest.raises(ollama.ResponseError, match="the machine is on fire"):
        for piece in client.chat(NAME, [ask("Hello!")], stream=True):
            pieces += [piece]
    assert pieces
    assert refusal(client.chat, NAME, [ask("Hello!")]) == (500, "the machine is on fire")
    monkeypatch.undo()
    until(lambda: n_open(server) == 0)


# --- many at a time, and clients that go ---


def test_many_at_a_time(server, samples):
    """By the asynchronous client."""
    asked = [(sample["path"], qa) for sample in samples[:4] for qa in sample["qa"][:3]]

    async def all_of_them():
        async with ollama.AsyncClient(host=server.url) as client:

            async def one(path, question):
                return (await client.chat(NAME, [ask(question, path)], options=GREEDY)).message.content

            async def streamed(path, question):
                pieces = await client.generate(NAME, question, images=[path], options=GREEDY, stream=True)
                return "".join([piece.response async for piece in pieces])

            calls = [(one, streamed)[i % 2](path, qa["question"]) for i, (path, qa) in enumerate(asked)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(all_of_them())
    assert answers == [qa["expected"] for _, qa in asked]


def n_open(server):
    return sum(loaded.served.n_open for loaded in server.app.state.pool.loaded())


@pytest.fixture(scope="module")
def endless():
    """A server whose answers only end with the context."""
    with serving(aliases=(NAME,)) as running:
        httpx.post(f"{running.url}/api/chat", json={"model": NAME})
        served = running.app.state.pool.loaded()[0].served
        served.model.tokenizer.__dict__["eog"] = frozenset()
        yield running


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_a_client_that_goes_away_from_a_stream(endless, path):
    body = {"model": NAME, "prompt": "Hello!", "messages": [ask("Hello!")]}
    with httpx.stream("POST", f"{endless.url}/api/{path}", json=body) as response:
        lines = response.iter_lines()
        assert not json.loads(next(lines))["done"]
        assert n_open(endless) == 1
    until(lambda: n_open(endless) == 0)
    until(lambda: endless.app.state.pool.loaded()[0].served.engine.n_active == 0)


def test_a_client_that_does_not_wait_for_the_whole(endless):
    body = {"model": NAME, "messages": [ask("Hello!")], "stream": False, "options": {"num_predict": 1900}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{endless.url}/api/chat", json=body, timeout=httpx.Timeout(10, read=0.2))
    until(lambda: n_open(endless) == 0)


def test_the_end_of_the_context(endless):
    with ollama.Client(host=endless.url) as client:
        answer = client.generate(NAME, "Hello!", options={**GREEDY, "num_predict": -1})
    assert answer.done_reason == "length"
    assert answer.prompt_eval_count + answer.eval_count >= N_CTX


def test_too_many_requests(endless):
    served = endless.app.state.pool.loaded()[0].served
    before, served._max_open = served._max_open, 1
    try:
        body = {"model": NAME, "messages": [ask("Hello!")]}
        with httpx.stream("POST", f"{endless.url}/api/chat", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            refused = httpx.post(f"{endless.url}/api/chat", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "try again later" in refused.json()["error"]
    finally:
        until(lambda: n_open(endless) == 0)
        served._max_open = before


def test_names_of_repositories(tmp_path):
    from pyvllama.locate import pocket_pair
    from pyvllama.server.ollama.names import find_card

    def kept(name, kind):
        return ModelCard(name, pocket_pair(), type=kind, is_kept=True)

    cards = [ModelCard("a/b", pocket_pair()), kept("me/Repo:Q8_0", "Q8_0"), kept("me/Repo:Q4_K_M", "Q4_K_M")]
    cards += [ModelCard("ollama:llama3.2-vision:11b", pocket_pair())]  # what `pyvllama serve ollama:NAME` serves
    cards += [kept("me/Other/sub/x-Q5_0.gguf", "Q5_0"), kept("Tiny-F32", "F32")]
    for name, wanted in [
        ("a/b", "a/b"), ("hf.co/me/Repo", "me/Repo:Q4_K_M"), ("me/repo:q8_0", "me/Repo:Q8_0"),
        ("hf.co/me/Repo:latest", "me/Repo:Q4_K_M"), ("me/Other", "me/Other/sub/x-Q5_0.gguf"), ("tiny-f32", "Tiny-F32"),
        ("llama3.2-vision:11b", "ollama:llama3.2-vision:11b"),
    ]:  # fmt: skip
        assert find_card(cards, name).name == wanted
    for name in ("me/Rep", "me/Repo:Q5_0", "a", "b", "me", "Tiny"):
        assert find_card(cards, name) is None
