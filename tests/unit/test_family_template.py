"""The chat template of Llama 3.2 Vision says what the Hub's corrected one says."""

import datetime

import pytest

from pyvllama.conversion.family_template import FAMILY_TEMPLATE
from pyvllama.errors import PromptError
from pyvllama.template import ChatTemplate

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
DATE = "Cutting Knowledge Date: December 2023\nToday Date: 25 Sep 2024\n\n"
PICTURE = {"type": "image"}
TOOL = {"type": "function", "function": {"name": "add"}}
TOOL_JSON = '{\n    "type": "function",\n    "function": {\n        "name": "add"\n    }\n}\n\n'
FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


def turn(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}{EOT}"


def render(messages: list[dict], tools: list[dict] | None = None, variables: dict | None = None) -> str:
    template = ChatTemplate(FAMILY_TEMPLATE, bos_token=BOS, now=lambda: datetime.datetime(2024, 9, 25))
    return template.render(messages, tools=tools, add_generation_prompt=True, variables=variables)


ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_text_alone_gets_a_system_message() -> None:
    expected = BOS + turn("system", DATE) + turn("user", "Hi") + ANSWER
    assert render([{"role": "user", "content": "Hi"}]) == expected


def test_a_picture_gets_none() -> None:
    messages = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}]
    assert render(messages) == BOS + turn("user", "<|image|>What?") + ANSWER


@pytest.mark.parametrize("system", [" Be brief. ", [{"type": "text", "text": "Be brief."}]])
def test_a_system_message_beside_a_picture(system: object) -> None:
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "text", "text": "What? "}, PICTURE]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    turns = turn("user", "What? <|image|>") + turn("assistant", "A cat.") + turn("user", "Sure?")
    assert render(messages) == BOS + turn("system", DATE + "Be brief.") + turns + ANSWER


def test_tools_in_the_first_message_of_the_user() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": " 1 and 2? "},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    head = "Given the following functions, please respond with a JSON for a function call "
    head += "with its proper arguments that best answers the given prompt.\n\n"
    expected = BOS + turn("system", "Environment: ipython\n" + DATE)
    expected += turn("user", head + FORMAT + TOOL_JSON + "1 and 2?")
    expected += turn("assistant", '{"name": "add", "parameters": {"a": 1}}') + turn("ipython", '"3"') + ANSWER
    assert render(messages, [TOOL]) == expected


def test_tools_in_the_system_message() -> None:
    head = "You have access to the following functions. "
    head += "To call a function, please respond with JSON for a function call."
    expected = BOS + turn("system", "Environment: ipython\n" + DATE + head + FORMAT + TOOL_JSON) + turn("user", "Hi")
    assert render([{"role": "user", "content": "Hi"}], [TOOL], {"tools_in_user_message": False}) == expected + ANSWER


@pytest.mark.parametrize(
    ("messages", "tools", "pattern"),
    [
        ([], [TOOL], "no first user message"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}, {"function": {}}]}], None, "single tool-calls"),
    ],
)
def test_what_it_refuses(messages: list[dict], tools: list[dict] | None, pattern: str) -> None:
    with pytest.raises(PromptError, match=pattern):
        render(messages, tools)
