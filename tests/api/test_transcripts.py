"""Chats and texts as the bundled model reads them, and which tokens are taken for answers."""

import pytest
from talk import assistant, user

from pyvllama.chats_file import Chat, Text
from pyvllama.errors import PromptError
from pyvllama.template import ChatTemplate
from pyvllama.transcripts import read_transcripts


def transcript(llm, *messages):
    (found,) = read_transcripts(Chat(list(messages), None, "a.jsonl:1"), llm.model, 512)
    return found


def said(llm, found):
    """The answers' tokens as text, special ones included."""
    return b"".join(llm.model.tokenizer.piece(found.token_ids[k], special=True) for k in found.answers).decode()


def test_the_answer_and_the_end_of_its_turn(llm, sample):
    found = transcript(llm, user(sample("01_square.png"), "What colour is the ring?"), assistant("The ring is yellow."))
    assert said(llm, found) == "The ring is yellow.<|eot_id|>"
    assert not found.is_open and len(found.images) == 1
    assert found.answers[-1] == len(found.token_ids) - 1
    assert found.token_ids[found.images[0].position] == llm.model.image_token


def test_all_answers_of_a_long_chat(llm):
    messages = [user("Hello!"), assistant("Hi."), user("Why?"), assistant("\nBecause."), user("And?"), assistant("")]
    found = transcript(llm, {"role": "system", "content": "Be brief."}, *messages)
    assert said(llm, found).replace("\n", "") == "Hi.<|eot_id|>Because.<|eot_id|><|eot_id|>"


def test_what_the_assistant_says_first_answers_nothing(llm):
    assert said(llm, transcript(llm, assistant("Hi."), user("Why?"), assistant("So."))) == "So.<|eot_id|>"


def test_an_open_chat_is_the_prompt_that_chat_would_render(llm):
    found = transcript(llm, user("Hello!"), assistant("Hi."), user("Why?"))
    assert found.is_open and said(llm, found) == "Hi.<|eot_id|>"
    closed = found.answered([5, 7])
    assert not closed.is_open and closed.token_ids == (*found.token_ids, 5, 7)
    n = len(found.token_ids)
    assert closed.answers == (*found.answers, n, n + 1)


def test_a_template_that_shows_the_past_differently(llm, monkeypatch):
    """Such as one that drops its reasoning: then there is nothing to compare."""
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}{{ loop.length }}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    monkeypatch.setattr(llm.model, "template", template)
    with pytest.raises(PromptError, match=r"a\.jsonl:1: the chat template shows a past answer differently"):
        transcript(llm, {"role": "user", "content": "Why?"}, assistant("So."))


def test_texts_are_cut_into_chunks(llm):
    text = "The ring is yellow and the star is blue. " * 20
    tokens = llm.model.tokenizer.tokenize(text)
    chunks = read_transcripts(Text(text, "a.txt"), llm.model, 32)
    assert [t for c in chunks for t in c.token_ids[1:]] == tokens
    assert all(c.token_ids[0] == llm.model.tokenizer.bos for c in chunks)
    assert {len(c.token_ids) for c in chunks[:-1]} == {32} and len(chunks[-1].token_ids) <= 32
    assert chunks[0].answers == tuple(range(17, 32))
    assert [c.where for c in chunks[:2]] == ["a.txt, chunk 1", "a.txt, chunk 2"]
