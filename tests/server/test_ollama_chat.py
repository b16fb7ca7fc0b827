"""/api/chat as Ollama's own Python client sees it: pictures, turns, streams, options."""

import base64
import json

import httpx
import pytest
from ollama_server import ANSWER, GREEDY, N_CTX, NAME, ask, check_costs


@pytest.mark.parametrize("form", ["path", "text", "bytes", "base64"])
def test_a_question_about_a_picture(ollama_client, picture, form):
    data = picture.read_bytes()
    image = {"path": picture, "text": str(picture), "bytes": data, "base64": base64.b64encode(data).decode()}[form]
    answer = ollama_client.chat(NAME, [ask("Describe the image.", image)], options=GREEDY)
    assert answer.message.role == "assistant"
    assert answer.message.content == ANSWER
    assert (answer.model, answer.done_reason) == (NAME, "stop")
    check_costs(answer)


def test_a_stream(ollama_client, picture):
    pieces = list(ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, stream=True))
    *body, last = pieces
    assert len(body) > 10
    assert "".join(piece.message.content for piece in body) == ANSWER
    assert all(piece.message.content and not piece.done and piece.done_reason is None for piece in body)
    assert (last.message.content, last.done_reason) == ("", "stop")
    check_costs(last)
    whole = ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY)
    assert (whole.eval_count, whole.prompt_eval_count) == (last.eval_count, last.prompt_eval_count)


def test_what_goes_over_the_wire(ollama_server, picture):
    image = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    body = {"model": NAME, "messages": [ask("Describe the image.", image)], "options": GREEDY}
    response = httpx.post(f"{ollama_server.url}/api/chat", content=json.dumps(body))
    assert response.headers["content-type"] == "application/x-ndjson"  # streaming is the default
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert set(lines[0]) == {"model", "created_at", "done", "message"}
    assert lines[0]["message"] == {"role": "assistant", "content": "A"}
    assert set(lines[-1]) == {
        "model", "created_at", "done", "done_reason", "message", "total_duration", "load_duration",
        "image_encode_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    }  # fmt: skip
    assert all(isinstance(lines[-1][key], int) for key in lines[-1] if key.endswith(("_duration", "_count")))


def test_the_image_encoding_is_told(ollama_server, other_picture):
    body = {
        "model": NAME,
        "stream": False,
        "messages": [ask("Describe the image.", base64.b64encode(other_picture.read_bytes()).decode())],
    }
    first, second = (httpx.post(f"{ollama_server.url}/api/chat", json=body).json() for _ in range(2))
    assert first["message"] == second["message"]
    assert 1e6 < first["image_encode_duration"] < first["total_duration"]  # milliseconds, in nanoseconds
    assert second["image_encode_duration"] == 0  # known by then


@pytest.mark.parametrize("stream", [False, True])
def test_several_turns(ollama_client, samples, stream):
    """The picture is sent with the first turn only, as apps do that keep the whole conversation."""
    for sample in samples[:3]:
        messages, said = [], []
        for i, qa in enumerate(sample["qa"]):
            messages.append(ask(qa["question"], *([sample["path"]] if i == 0 else [])))
            got = ollama_client.chat(NAME, messages, options=GREEDY, stream=stream)
            said.append("".join(piece.message.content for piece in (got if stream else [got])))
            messages.append({"role": "assistant", "content": said[-1]})
        assert said == [qa["expected"] for qa in sample["qa"]]
        assert len(said) == 4


def test_a_new_picture_in_a_later_turn(ollama_client, samples):
    messages = []
    for sample in samples[:3]:
        qa = sample["qa"][0]
        messages.append(ask(qa["question"], sample["path"]))
        answer = ollama_client.chat(NAME, messages, options=GREEDY)
        assert answer.message.content == qa["expected"]
        messages.append(answer.message)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_begun(ollama_client, picture, stream):
    """Open WebUI's "continue" sends it back."""
    asked = [ask("Describe the image.", picture), {"role": "assistant", "content": "A yellow ring"}]
    got = ollama_client.chat(NAME, asked, options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    assert "A yellow ring" + "".join(piece.message.content for piece in pieces) == ANSWER
    long = [*[ask("Hello! " * 100), {"role": "assistant", "content": "Hello."}] * 10, *asked]
    shortened = ollama_client.chat(NAME, long, options={**GREEDY, "num_predict": 40})
    assert shortened.message.content
    assert shortened.prompt_eval_count <= N_CTX


def test_several_pictures_in_a_message(ollama_client, picture, other_picture):
    """Ollama's runner for this model refused more than one."""
    both = ollama_client.chat(NAME, [ask("Describe the image.", picture, other_picture)], options=GREEDY)
    one = ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY)
    assert both.prompt_eval_count == one.prompt_eval_count + 1  # a picture is one token
    assert both.message.content


def test_a_system_prompt(ollama_client, picture):
    plain = [ask("Describe the image.", picture)]
    with_system = [{"role": "system", "content": "You are a careful observer."}, *plain]
    answer = ollama_client.chat(NAME, with_system, options=GREEDY)
    assert "yellow ring" in answer.message.content
    assert answer.prompt_eval_count > ollama_client.chat(NAME, plain, options=GREEDY).prompt_eval_count


@pytest.mark.parametrize("stream", [False, True])
def test_num_predict_and_stop(ollama_client, picture, stream):
    def text_and_reason(**options):
        got = ollama_client.chat(
            NAME, [ask("Describe the image.", picture)], options={**GREEDY, **options}, stream=stream, keep_alive="5m"
        )
        pieces = list(got) if stream else [got]
        return "".join(piece.message.content for piece in pieces), pieces[-1].done_reason

    assert text_and_reason(num_predict=3) == ("A yellow ring", "length")
    assert text_and_reason(stop=["at the"]) == ("A yellow ring ", "stop")
    assert text_and_reason(num_predict=-1, num_ctx=131072, num_gpu=99) == (ANSWER, "stop")


def test_a_seed_repeats_an_answer(ollama_client, picture):
    def said(seed):
        options = {"temperature": 5.0, "top_p": 1.0, "seed": seed, "num_predict": 12}
        return ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=options).message.content

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(6)}) > 1


def test_long_conversations_lose_their_oldest_turns(ollama_client, ollama_server):
    turn = [ask("Hello! " * 100), {"role": "assistant", "content": "Hello. " * 100}]
    long = [*turn * 8, ask("Hello!")]
    answer = ollama_client.chat(NAME, long, options={**GREEDY, "num_predict": 5})
    assert answer.prompt_eval_count <= N_CTX
    refused = httpx.post(
        f"{ollama_server.url}/api/chat", json={"model": NAME, "messages": long, "truncate": False, "stream": False}
    )
    assert refused.status_code == 400
    assert str(N_CTX) in refused.json()["error"]
