"""Conversations as files: what is loaded is what was saved, and what anybody may have written is checked."""

import json

import numpy as np
import pytest
from pictures import noise, same

from pyvllama.cli.chat.conversation import Conversation, Question, Turn
from pyvllama.cli.chat.picture import Picture
from pyvllama.cli.chat.transcript import load_transcript, save_transcript
from pyvllama.cli.sampling import check_sampling
from pyvllama.errors import ConfigError, PromptError


@pytest.fixture
def conversation():
    a, b = Picture(noise(seed=1), "a.jpg"), Picture(noise(30, 20), "https://example.org/b.png")
    again = Picture(noise(seed=1), "copy of a.jpg")
    turns = [
        Turn(Question("What is this? <|image|> ", (a, b)), "日本語 \u2028 **x**\n"),
        Turn(Question("", (again,)), "The same."),
        Turn(Question("Thanks!"), "Bye."),
    ]
    return Conversation("Be brief.", turns, [b], {"temperature": 0.2, "stop": ["a b"]})


def load(path):
    return load_transcript(path, check_sampling)[0]


def comparable(messages):
    """Messages with pixels instead of images."""
    if isinstance(messages, list):
        return [comparable(m) for m in messages]
    if isinstance(messages, dict):
        return {k: comparable(v) for k, v in messages.items()}
    return np.asarray(messages).tolist() if hasattr(messages, "size") else messages


def test_what_is_loaded_is_what_was_saved(conversation, tmp_path):
    save_transcript(conversation, tmp_path / "chat.json", "a model")
    loaded, model = load_transcript(tmp_path / "chat.json", check_sampling)
    assert model == "a model"
    assert comparable(loaded.messages()) == comparable(conversation.messages())
    assert loaded.options == conversation.options
    assert [p.name for p in loaded.pending] == ["https://example.org/b.png"]
    assert same(loaded.pending[0].image, conversation.pending[0].image)
    save_transcript(loaded, tmp_path / "chat.json", "a model")  # over its like
    assert comparable(load(tmp_path / "chat.json").messages()) == comparable(conversation.messages())
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]


def test_a_picture_is_stored_once(conversation, tmp_path):
    save_transcript(conversation, tmp_path / "chat.json", "")
    value = json.loads((tmp_path / "chat.json").read_text())
    assert len(value["images"]) == 2
    assert (
        len({p["sha256"] for m in value["messages"] if isinstance(m["content"], list) for p in m["content"][:-1]}) == 2
    )


def test_nothing_yet(tmp_path):
    save_transcript(Conversation(), tmp_path / "chat.json", "")
    assert load(tmp_path / "chat.json") == Conversation()


def test_other_files_are_not_written_over(conversation, tmp_path):
    for content in (b"\x89PNG\xff", b'{"a": 1}'):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ConfigError, match="is no transcript"):
            save_transcript(conversation, tmp_path / "other", "")
        assert (tmp_path / "other").read_bytes() == content
    with pytest.raises(ConfigError, match="cannot be written"):
        save_transcript(conversation, tmp_path / "gone" / "chat.json", "")
    with pytest.raises(ConfigError, match="is no transcript"):
        save_transcript(conversation, tmp_path, "")


def digest_of(value):
    return next(iter(value["images"]))


DAMAGES = {
    "no JSON object": (lambda v: [v], "JSON object"),
    "another format": (lambda v: v | {"format": "x"}, "no transcript"),
    "a later version": (lambda v: v | {"version": 2}, "version"),
    "no messages": (lambda v: v | {"messages": None}, '"messages" should be'),
    "options out of range": (lambda v: v | {"options": {"temperature": -1}}, "temperature"),
    "unknown options": (lambda v: v | {"options": {"heat": 1}}, "heat"),
    "options of a type": (lambda v: v | {"options": {"stop": 7}}, "stop"),
    "a message of a type": (lambda v: v | {"messages": [1]}, r"messages\[0\]"),
    "roles in another order": (lambda v: v | {"messages": v["messages"][2:]}, r"messages\[0\] should have the role"),
    "a question without answer": (lambda v: v | {"messages": v["messages"][:2]}, r"messages\[1\] has no answer"),
    "an unknown part": (
        lambda v: v | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "/etc/passwd"}]}]},
        "image_url",
    ),
    "a picture in an answer": (
        lambda v: v | {"messages": [*v["messages"][:2], {"role": "assistant", "content": v["messages"][1]["content"]}]},
        "unknown type 'image'",
    ),
    "no pictures": (lambda v: v | {"images": {}}, 'not under "images"'),
    "an unknown pending picture": (lambda v: v | {"pending": [7]}, "pending"),
    "another picture": (
        lambda v: v | {"images": dict(zip(v["images"], reversed(v["images"].values()), strict=True))},
        "another picture",
    ),
    "a picture by path": (lambda v: v | {"images": {digest_of(v): {"data": "/etc/passwd"}}}, "data: URI"),
    "a picture by address": (lambda v: v | {"images": {digest_of(v): {"data": "http://a/b"}}}, "data: URI"),
    "a picture that is none": (lambda v: v | {"images": {digest_of(v): {"data": "data:;base64,AAAA"}}}, "picture"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_transcripts(conversation, tmp_path, damage):
    change, message = DAMAGES[damage]
    path = tmp_path / "chat.json"
    save_transcript(conversation, path, "")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(PromptError, match=message):
        load(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "gone.json")
    for content in (b"", b"{", b"[" * 100_000):
        (tmp_path / "chat.json").write_bytes(content)
        with pytest.raises(PromptError, match="is no transcript"):
            load(tmp_path / "chat.json")
    (tmp_path / "chat.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "chat.json")
