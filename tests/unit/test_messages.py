"""OpenAI-shaped messages that are wrong: the error says where and what to do."""

import re

import pytest

from pyvllama.errors import PromptError
from pyvllama.messages import read_messages, read_tools


def user(*parts):
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def picture(source="a.png"):
    return {"type": "image_url", "image_url": {"url": source}}


OK = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "messages is empty"),
        ("Hello", "messages must be a list"),
        (None, "messages must be a list"),
        (OK, "messages must be a list"),
        ([OK, "Hello"], "messages[1] must be an object"),
        ([OK, None], "messages[1] must be an object"),
        ([{"content": "x"}], 'messages[0] has no "role": give one of system'),
        ([OK, {"role": "robot", "content": "x"}], "messages[1] has the unknown role 'robot': give one of system"),
        ([{"role": ["user"], "content": "x"}], "messages[0] has the unknown role ['user']"),
        ([{"role": "<|image|>", "content": "x"}], "messages[0] has the unknown role"),
        ([{"role": "user"}], 'messages[0] (role user) has no "content"'),
        ([{"role": "user", "content": None}], "messages[0] (role user) has null as its content"),
        ([OK, {"role": "assistant", "content": None}], "messages[1] (role assistant) has null"),
        ([OK, {"role": "assistant", "content": None, "tool_calls": []}], "messages[1] (role assistant) has null"),
        (
            [{"role": "user", "content": 5}],
            "messages[0].content must be a string or a list of parts, not a value of type int",
        ),
        ([{"role": "user", "content": {"type": "text"}}], "messages[0].content must be a string or a list of parts"),
        ([{"role": "user", "content": b"x"}], "messages[0].content must be a string or a list of parts"),
        ([{"role": "user", "content": ""}], "messages[0].content is empty"),
        ([{"role": "user", "content": []}], "messages[0].content is empty"),
        ([user("")], "messages[0].content is empty"),
        ([OK, {"role": "assistant", "content": []}], "messages[1].content is empty"),
        ([user("x", 3)], 'messages[0].content[1] must be an object with a "type"'),
        ([{"role": "user", "content": ["Hello"]}], 'messages[0].content[0] must be an object with a "type"'),
        (
            [user("x", {"text": "x"})],
            'messages[0].content[1] has no "type": "text", "image_url" and "image" are supported',
        ),
        ([user({"type": "video", "video": "x"})], "messages[0].content[0] has the unknown type 'video'"),
        ([user({"type": ["text"]})], "messages[0].content[0] has the unknown type ['text']"),
        ([user({"type": "text"})], 'messages[0].content[0] must have its text as a string under "text", not null'),
        ([user({"type": "text", "text": 5})], "messages[0].content[0] must have its text as a string"),
        ([user({"type": "image_url"})], 'messages[0].content[0] must have "image_url": {"url": ...}'),
        ([user({"type": "image_url", "image_url": {}})], 'must have "image_url": {"url": ...}'),
        ([user({"type": "image_url", "image_url": {"url": ""}})], 'must have "image_url": {"url": ...}'),
        ([user({"type": "image_url", "image_url": {"url": 5}})], 'must have "image_url": {"url": ...}'),
        ([user({"type": "image"})], 'messages[0].content[0] must have "image": a path'),
        (
            [{"role": "system", "content": [picture()]}, OK],
            "messages[0].content holds an image: the system message is text",
        ),
        ([OK, {"role": "assistant", "content": "", "tool_calls": "f"}], "messages[1].tool_calls must be a list"),
        ([OK, {"role": "assistant", "content": "", "tool_calls": [1]}], "messages[1].tool_calls[0] must be an object"),
        ([OK, {"role": "assistant", "tool_calls": [{"function": "f"}]}], "messages[1].tool_calls[0] must be an object"),
        ([OK | {"name": 5}], "messages[0].name must be a string"),
        (
            [OK | {"x": {"y": [object()]}}],
            "messages[0].x.y[0] must be made of JSON's types, not a value of type object",
        ),
    ],
)
def test_wrong_messages_are_told_where_and_what(messages, told):
    with pytest.raises(PromptError, match=re.escape(told)):
        read_messages(messages)


@pytest.mark.parametrize(
    ("tools", "told"), [("f", "tools must be a list"), ({"a": 1}, "tools must be a list"), (["f"], "tools[0]")]
)
def test_wrong_tools(tools, told):
    with pytest.raises(PromptError, match=re.escape(told)):
        read_tools(tools)


def test_a_model_dump_is_advised():
    class Message:
        def model_dump(self):
            return OK

    with pytest.raises(PromptError, match=r"messages\[0\].*\.model_dump\(\)"):
        read_messages([Message()])


@pytest.mark.parametrize("content", ["", [{"type": "text", "text": ""}]])
def test_only_the_user_must_say_something(content):
    read_messages(
        [
            {"role": "system", "content": content},
            OK,
            {"role": "assistant", "content": content},
            {"role": "tool", "content": content},
        ]
    )
    read_messages([user(picture(), "")])
