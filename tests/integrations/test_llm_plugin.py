"""The real `llm` program and its Python API, with our plugin found by its entry point."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

import pytest
from pictures import encoded, noise

pytest.importorskip("llm", reason="needs the extra llm")

import llm

import pyvllama
from pyvllama.integrations import llm_plugin
from pyvllama.integrations.llm_plugin import AsyncPyvllamaModel, PyvllamaModel

QUESTION = "What is in the picture?"
WHO = "I am Pocket Vllama, a tiny vision model."


@pytest.fixture(scope="module", autouse=True)
def unloaded():
    yield
    if llm_plugin._loaded._model:
        llm_plugin._loaded._model.close()
    llm_plugin._loaded = llm_plugin._Loaded()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """program("-m", "pyvllama-pocket", ...) -> the finished process, with a home of its own."""
    home = tmp_path_factory.mktemp("llm")
    env = {**os.environ, "LLM_USER_PATH": str(home), "PYVLLAMA_CACHE": str(home / "cache")}
    env |= {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    env.pop("LLM_LOAD_PLUGINS", None)

    def run(*args, **options):
        command = [sys.executable, "-m", "llm", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120, **options)

    return run


@pytest.fixture
def pictures(pocket_checkpoint):
    return sorted((pocket_checkpoint / "samples").glob("*.png"))[:2]


@pytest.fixture
def expected(pictures):
    """What pyvllama itself says of the pictures."""
    with pyvllama.load(n_threads=1) as model:
        contents = [[{"type": "image", "image": p}, {"type": "text", "text": QUESTION}] for p in pictures]
        answers = [model.chat([{"role": "user", "content": c}], temperature=0, max_tokens=24) for c in contents]
    said = [completion["choices"][0]["message"]["content"] for completion in answers]
    assert said[0] != said[1]
    return said


# --- the program ---


def test_models_are_listed(program):
    listed = program("models", "-q", "pyvllama").stdout
    assert listed.split() == ["pyvllama:", "pyvllama-pocket", "pyvllama:", "pyvllama"]
    options = program("models", "--options", "-m", "pyvllama").stdout
    assert "mmproj" in options
    assert "image/webp" in options


def test_a_conversation(program, pictures, expected):
    greedy = ["-o", "temperature", "0", "-o", "max_tokens", "24", "-o", "n_threads", "1"]
    run = program("-m", "pyvllama-pocket", QUESTION, "-a", pictures[0], *greedy)
    assert (run.returncode, run.stdout.strip()) == (0, expected[0]), run.stderr
    assert program("-c", "Who are you?", *greedy).stdout.strip() == WHO
    first, second = json.loads(program("logs", "--json", "-n", "2").stdout)
    assert first["conversation_id"] == second["conversation_id"]
    assert first["input_tokens"] + first["output_tokens"] < second["input_tokens"]


@pytest.mark.parametrize("stream", [[], ["--no-stream"]])
def test_a_picture_through_a_pipe(program, pictures, expected, stream):
    args = ["-m", "pyvllama-pocket", QUESTION, "-a", "-", "-o", "temperature", "0", "-o", "max_tokens", "24", *stream]
    with pictures[1].open("rb") as file:
        run = program(*args, stdin=file)
    assert run.stdout.strip() == expected[1], run.stderr


def test_a_schema(program, pictures):
    args = ["-m", "pyvllama-pocket", QUESTION, "-a", pictures[0], "-o", "max_tokens", "60", "--schema", "round bool"]
    assert isinstance(json.loads(program(*args).stdout)["round"], bool)


def test_any_model_by_its_path(program, pocket_pairs, pictures):
    pair = pocket_pairs("q8_0", "q8_0")
    run = program("-m", "pyvllama", "Who are you?", "-o", "model", pair.text, "-o", "mmproj", pair.mmproj)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-m", "pyvllama", "-o", "model", "/nowhere/a.gguf"], "no such file"),
        (["-m", "pyvllama-pocket", "-o", "temperature", "-1"], "temperature"),
        (["-m", "pyvllama-pocket", "-o", "tempo", "1"], "tempo"),
        (["-m", "pyvllama-pocket", "--at", __file__, "text/plain"], "does not support attachments of type"),
        (["-m", "pyvllama-pocket", "--at", __file__, "image/png"], "not a picture that can be read"),
    ],
)
def test_what_is_refused(program, args, words):
    run = program("Hello", *args)
    assert run.returncode != 0
    assert words in run.stderr
    assert "Traceback" not in run.stderr


# --- the Python API ---


def prompt(model, text, **options):
    return model.prompt(text, **{"temperature": 0, "max_tokens": 24, "n_threads": 1, **options})


@pytest.mark.parametrize(("seed", "kind"), list(enumerate(["PNG", "WEBP", "GIF", "JPEG"])))
def test_kinds_of_pictures(seed, kind):
    model = PyvllamaModel("pyvllama-pocket")
    attachment = llm.Attachment(content=encoded(noise(seed=seed), kind))
    assert attachment.resolve_type() in model.attachment_types
    response = prompt(model, QUESTION, attachments=[attachment])
    assert response.text()
    assert response.response_json["finish_reason"] in {"stop", "length"}
    assert response.response_json["timings"]["image_encode_ms"] > 0


def test_a_conversation_keeps_its_pictures(pictures, expected):
    conversation = PyvllamaModel("pyvllama-pocket").conversation()
    for path, said in zip(pictures, expected, strict=True):
        attachments = [llm.Attachment(path=str(path))]
        response = prompt(conversation, QUESTION, attachments=attachments)
        assert response.text() == said
    asked = [m["content"] for m in llm_plugin._messages(response.prompt.messages) if m["role"] == "user"]
    assert [content[0]["image"] for content in asked] == list(map(str, pictures))


def test_a_stream_that_is_left_open(expected):
    model = PyvllamaModel("pyvllama-pocket")
    stream = iter(prompt(model, "Who are you?"))
    next(stream)
    assert prompt(model, "Who are you?").text() == WHO
    with pytest.raises(llm.ModelError, match="another call"):
        list(stream)


def test_another_model_takes_its_place():
    model = PyvllamaModel("pyvllama-pocket")
    assert prompt(model, "Who are you?").text() == WHO
    first = llm_plugin._loaded._model
    assert prompt(model, "Who are you?").text() == WHO
    assert llm_plugin._loaded._model is first
    assert prompt(model, "Who are you?", n_ctx=256).text() == WHO
    assert llm_plugin._loaded._model.n_ctx == 256


def test_stop_and_seed():
    model = PyvllamaModel("pyvllama-pocket")
    assert prompt(model, "Who are you?", stop=" Pocket").text() == "I am"
    options = {"temperature": 2.0, "seed": 5}
    assert prompt(model, "Tell", **options).text() == prompt(model, "Tell", **options).text()


def test_the_asynchronous_model(pictures, expected):
    async def ask():
        model = AsyncPyvllamaModel("pyvllama-pocket")
        attachments = [llm.Attachment(path=str(pictures[0]))]
        return await prompt(model, QUESTION, attachments=attachments).text()

    assert asyncio.run(ask()) == expected[0]


# --- tools ---


@pytest.fixture
def calling(monkeypatch):
    """The pocket model knows no tools: it is made to call one, once, by tool_choice. Returns what it was asked."""
    asked = []
    get = llm_plugin._Loaded.get

    class Calling:
        def __init__(self, model):
            self.model = model

        def chat(self, messages, **options):
            asked.append((messages, options.get("tools")))
            answered = any(message["role"] == "tool" for message in messages)
            return self.model.chat(messages, **options, tool_choice="none" if answered else "required")

    monkeypatch.setattr(llm_plugin._Loaded, "get", lambda self, options: Calling(get(self, options)))
    return asked


def count_letters(word: Literal["ring", "square"]) -> int:
    """Count the letters of a word."""
    return len(word)


def check_conversation(asked, text, given):
    (_, tools), (messages, _) = asked
    (function,) = [tool["function"] for tool in tools]
    assert (function["name"], function["description"]) == ("count_letters", "Count the letters of a word.")
    assert function["parameters"]["properties"]["word"]["enum"] == ["ring", "square"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    (call,) = messages[1]["tool_calls"]
    assert call["function"]["name"] == "count_letters"
    word = json.loads(call["function"]["arguments"])["word"]
    assert given == [word]
    assert messages[2]["content"] == str(len(word))
    assert messages[2]["tool_call_id"] == call["id"] != ""
    assert text


def test_tools(calling):
    given = []

    def note(tool, call):
        given.append(call.arguments["word"])

    chain = PyvllamaModel("pyvllama-pocket").chain(
        "How many letters?", tools=[count_letters], before_call=note, options={"max_tokens": 60, "temperature": 0}
    )
    check_conversation(calling, chain.text(), given)


def test_tools_of_the_asynchronous_model(calling):
    given = []

    async def ask():
        async def note(tool, call):
            given.append(call.arguments["word"])

        chain = AsyncPyvllamaModel("pyvllama-pocket").chain(
            "How many letters?", tools=[count_letters], before_call=note, options={"max_tokens": 60, "temperature": 0}
        )
        return await chain.text()

    check_conversation(calling, asyncio.run(ask()), given)


def test_a_tool_that_is_not_called():
    chain = PyvllamaModel("pyvllama-pocket").chain("Who are you?", tools=[count_letters], options={"temperature": 0})
    assert chain.text()
    assert len(list(chain.responses())) == 1


def test_the_program_passes_tools_on(program):
    """llm refuses tools to models that do not support them."""
    got = program("-m", "pyvllama-pocket", "-T", "llm_version", "-o", "temperature", "0", "Who are you?", "--no-log")
    assert got.returncode == 0, got.stderr
    assert got.stdout.strip()


def test_a_picture_that_a_tool_returns():
    result = llm.parts.ToolResultPart(name="look", output="", attachments=[llm.Attachment(content=encoded(noise()))])
    message = llm.parts.Message(role="tool", parts=[result])
    with pytest.raises(llm.ModelError, match="look returned a picture"):
        llm_plugin._messages([message])
