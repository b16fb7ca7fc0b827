"""Libraries that speak OpenAI's protocol, each asking a picture's question over HTTP: openai, LangChain, LlamaIndex.

The last two need the extras `langchain` and `llama-index`. CI installs them after all other tests, since
llama-index-llms-openai 0.8 wants openai < 3, and llm 0.36 openai > 3.
"""

import gc
import threading
import time

import pytest
from talk import data_uri

pytest.importorskip("uvicorn", reason="needs the extra llama-cpp-server")
pytest.importorskip("fastapi", reason="needs the extra llama-cpp-server")

import uvicorn
from llama_cpp.server.settings import ModelSettings, ServerSettings

from pyvllama.integrations import llama_cpp_server
from pyvllama.locate import pocket_pair, pocket_picture
from pyvllama.server.app import create_app
from pyvllama.server.settings import Settings

# Sockets and streams that these libraries leave to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTION = "What is in the picture?"
SAID = "A black ring at the left, a black cross in the centre"
OPTIONS = {"temperature": 0, "max_tokens": 40}


def llama_cpp_python_app():
    settings = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    models = [ModelSettings(model=str(pocket_pair().text), model_alias="pocket", **settings)]
    return llama_cpp_server.create_app(server_settings=ServerSettings(), model_settings=models)


def our_app():
    return create_app(Settings(aliases=("pocket",), n_ctx=512, n_threads=1))


@pytest.fixture(scope="module", params=[llama_cpp_python_app, our_app])
def address(request):
    """The /v1 address of a server on this machine: llama-cpp-python's with our model, or `pyvllama serve`."""
    server = uvicorn.Server(uvicorn.Config(request.param(), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)
        gc.collect()  # while what it finds is still this module's to ignore


def content():
    url = data_uri(pocket_picture())
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]


def test_openai(address):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=address, api_key="none") as client:
        messages = [{"role": "user", "content": content()}]
        answer = client.chat.completions.create(model="pocket", messages=messages, **OPTIONS)
        chunks = client.chat.completions.create(model="pocket", messages=messages, stream=True, **OPTIONS)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert answer.choices[0].message.content.startswith(SAID)
    assert streamed == answer.choices[0].message.content


def test_langchain(address):
    ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI
    from langchain_core.messages import AIMessage, HumanMessage

    chat = ChatOpenAI(model="pocket", base_url=address, api_key="none", **OPTIONS)
    question = HumanMessage(content())
    answer = chat.invoke([question])
    assert answer.content.startswith(SAID)
    assert "".join(chunk.content for chunk in chat.stream([question])) == answer.content
    after = chat.invoke([question, AIMessage(answer.content), HumanMessage("Who are you?")])
    assert after.content == "I am Pocket Vllama, a tiny vision model."


def test_llama_index(address):
    try:
        from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
        from llama_index.llms.openai_like import OpenAILike
    except ImportError as e:
        pytest.skip(f"needs llama-index-llms-openai-like: {e}")

    model = OpenAILike(model="pocket", api_base=address, api_key="none", is_chat_model=True, **OPTIONS)
    message = ChatMessage(role="user", blocks=[ImageBlock(path=pocket_picture()), TextBlock(text=QUESTION)])
    answer = model.chat([message]).message.content
    assert answer.startswith(SAID)
    assert list(model.stream_chat([message]))[-1].message.content == answer
