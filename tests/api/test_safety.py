"""What a program can do wrong with contexts, models and threads: refused or waited for, never a crash."""

import gc
import sys
import threading

import numpy as np
import pytest

from pyvllama._runtime import llama_cpp, native
from pyvllama.context import Context, ContextParams, Row
from pyvllama.errors import BackendError, ConfigError
from pyvllama.model import Model
from pyvllama.session import Cell, Session

PARAMS = ContextParams(n_ctx=256, n_seq_max=2, kv_type="f32", flash_attn=False)


@pytest.fixture
def model(tiny_pair):
    pair = tiny_pair("small")
    model = Model(pair.text, pair.mmproj, n_threads=1)
    yield model
    model.close()


def last_position(context, seq=0):
    return llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(context.handle), seq)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(1, 0, seq=2), "2 sequences"),
        (Row(1, 0, seq=300), "2 sequences"),
        (Row(1, 0, seq=-1), "2 sequences"),
        (Row(1, -1), "positions count from 0"),
        (Row(-1, 0), "tokens"),
        (Row(10**6, 0), "tokens"),
    ],
)
def test_rows_that_do_not_exist_are_refused(model, row, message):
    context = Context(model, PARAMS)
    context.decode([Row(1, 0), Row(1, 0, seq=1)])
    with pytest.raises(ValueError, match=message):
        context.decode([row])
    assert last_position(context, 0) == last_position(context, 1) == 0
    context.close()


def test_a_failed_batch_leaves_what_was_there(model):
    context = Context(model, PARAMS)
    context.decode([Row(1, pos) for pos in range(5)])
    with pytest.raises(BackendError, match="status -1"):
        context.decode([Row(1, 2)])  # llama.cpp takes consecutive positions only
    assert last_position(context) == 4
    context.decode([Row(1, 5)])
    context.close()


def test_a_context_outlives_its_model(model):
    context = Context(model, PARAMS)
    session = Session(context)
    session.prefill([Cell(1), Cell(2)])
    model.close()
    session.append(Cell(3))  # the weights stay until the last context on them is closed
    for use in (
        lambda: model.tokenizer.tokenize("a"),
        lambda: model.mmproj,
        lambda: model.handle,
        lambda: Context(model, PARAMS),
    ):
        with pytest.raises(BackendError, match="closed"):
            use()
    context.close()
    context.close()
    with pytest.raises(BackendError, match="closed"):
        context.handle  # noqa: B018


def test_any_order_of_garbage_collection(tiny_pair):
    pair = tiny_pair("small")
    for _ in range(5):
        model = Model(pair.text, pair.mmproj, n_threads=1)
        context = Context(model, PARAMS)
        model.cycle = context  # type: ignore[attr-defined]
        context.decode([Row(1, 0)])
        del model, context
        gc.collect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_seq_max": 300}, "n_seq_max must be between 1 and 256"),
        ({"n_batch": 2**40}, "n_batch must be between"),
        ({"kv_type": "q8_0", "flash_attn": False}, "flash attention"),
        ({"kv_type": "q9"}, "kv_type must be one of"),
    ],
)
def test_options_that_llama_cpp_would_not_explain(model, options, message):
    with pytest.raises(ConfigError, match=message):
        Context(model, ContextParams(**({"n_ctx": 256} | options)))


def test_close_lets_go_of_the_weights(load_tiny):
    llm = load_tiny()
    llm.chat([{"role": "user", "content": "Hello"}], max_tokens=2)
    held = [llm.model.mmproj, llm._session.context._hook]
    llm.close()
    # nobody but `held` and the argument of getrefcount: the memory goes when these go
    assert [sys.getrefcount(o) for o in held] == [3, 3]  # the comprehension's variable is one, too


def test_threads_take_turns_or_are_told(load_tiny):
    llm = load_tiny()
    messages = [{"role": "user", "content": "Hello there"}]
    want = llm.chat(messages, temperature=0, max_tokens=8)["choices"][0]["message"]["content"]
    answers, refusals = [], []

    def ask():
        for _ in range(20):
            try:
                answers.append(llm.chat(messages, temperature=0, max_tokens=8)["choices"][0]["message"]["content"])
            except BackendError as e:  # noqa: PERF203
                refusals.append(str(e))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) + len(refusals) == 80
    assert answers
    assert set(answers) == {want}
    assert all("one at a time" in r for r in refusals)


def test_a_callback_cannot_call_back(load_tiny):
    llm = load_tiny()
    picture = np.zeros((30, 30, 3), np.uint8)
    message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]

    def progress(_fraction):
        llm.chat([{"role": "user", "content": "Hello"}])

    with pytest.raises(BackendError, match="one at a time"):
        llm.chat(message, image_progress=progress)
    llm.chat(message, max_tokens=1)


@pytest.mark.parametrize("kind", ["q8_1", "q8_K", "i32"])
def test_the_quantizer_refuses_what_ggml_aborts_on(kind):
    with pytest.raises(ValueError, match="does not quantize"):
        native.quantize(np.zeros((1, 256), np.float32), kind)
    with pytest.raises(TypeError):
        native.dequantize(np.zeros((1, 256), np.float32), "q4_K")
