"""/api/generate as Ollama's own Python client sees it."""

import pytest
from ollama_server import ANSWER, GREEDY, NAME, ask, check_costs


@pytest.mark.parametrize("stream", [False, True])
def test_generate(ollama_client, picture, stream):
    got = ollama_client.generate(NAME, "Describe the image.", images=[picture], options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    assert "".join(piece.response for piece in pieces) == ANSWER
    assert pieces[-1].done_reason == "stop"
    assert all(piece.context is None for piece in pieces[:-1])
    check_costs(pieces[-1])


def test_generate_is_a_chat_of_one_turn(ollama_client, picture):
    chat = ollama_client.chat(
        NAME, [{"role": "system", "content": "Be brief."}, ask("Describe the image.", picture)], options=GREEDY
    )
    prompt = ollama_client.generate(NAME, "Describe the image.", system="Be brief.", images=[picture], options=GREEDY)
    assert prompt.response == chat.message.content
    assert (prompt.prompt_eval_count, prompt.eval_count) == (chat.prompt_eval_count, chat.eval_count)


def test_context_goes_on(ollama_client):
    """The same as a chat of these turns."""
    first = ollama_client.generate(NAME, "Hello!", options=GREEDY)
    second = ollama_client.generate(NAME, "How are you?", context=first.context, options=GREEDY)
    messages = [ask("Hello!"), {"role": "assistant", "content": first.response}, ask("How are you?")]
    chat = ollama_client.chat(NAME, messages, options=GREEDY)
    assert second.response == chat.message.content
    assert second.prompt_eval_count == chat.prompt_eval_count
    assert second.context[: len(first.context)] == first.context


def test_context_bears_no_pictures(ollama_client, ollama_server, picture):
    first = ollama_client.generate(NAME, "Describe the image.", images=[picture], options=GREEDY)
    served = ollama_server.app.state.pool.loaded()[0].served
    assert served.model.image_token not in first.context
    second = ollama_client.generate(
        NAME, "Describe the image.", context=first.context, images=[picture], options=GREEDY
    )
    assert second.response == ANSWER
    with_token = [*first.context, served.model.image_token]
    assert ollama_client.generate(NAME, "Hello!", context=with_token, options=GREEDY).response


def test_raw(ollama_client, ollama_server, picture):
    served = ollama_server.app.state.pool.loaded()[0].served
    text = served.model.template.render([{"role": "user", "content": "Describe the image."}]).removeprefix(
        "<|begin_of_text|>"
    )
    head, tail = text.split("Describe")
    for prompt in (f"{head}<|image|>Describe{tail}", text):
        answer = ollama_client.generate(NAME, prompt, raw=True, images=[picture], options=GREEDY)
        assert answer.response == ANSWER
        assert answer.context is None
    plain = ollama_client.generate(NAME, "Once upon", raw=True, options={**GREEDY, "num_predict": 3})
    assert plain.eval_count == 3
