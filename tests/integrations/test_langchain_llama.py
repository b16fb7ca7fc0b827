"""LangChain's ChatLlamaCpp with a `pyvllama.Llama` in it.

It makes its own llama_cpp.Llama from a path, unless it is built by pydantic's `model_construct`, which takes an
instance. In no extra of ours: `pip install langchain-community`, whose makers no longer maintain it.
"""

import warnings

import pytest
from talk import data_uri

from pyvllama.locate import pocket_picture

QUESTION = "What is in the picture?"
SAID = "A black ring at the left, a black cross in the centre"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_chat_llama_cpp(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ChatLlamaCpp = pytest.importorskip("langchain_community.chat_models.llamacpp").ChatLlamaCpp
    from langchain_core.messages import AIMessage, HumanMessage

    chat = ChatLlamaCpp.model_construct(model_path="pocket", client=make(), temperature=0, max_tokens=40)
    image = {"type": "image_url", "image_url": {"url": data_uri(pocket_picture())}}
    question = HumanMessage([image, {"type": "text", "text": QUESTION}])
    answer = chat.invoke([question])
    assert answer.content.startswith(SAID)
    assert "".join(chunk.content for chunk in chat.stream([question])) == answer.content
    after = chat.invoke([question, AIMessage(answer.content), HumanMessage("Who are you?")])
    assert after.content == "I am Pocket Vllama, a tiny vision model."
