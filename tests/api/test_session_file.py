"""A session that was saved and loaded goes on as if nothing had happened; one of another model does not go on."""

import numpy as np
import pytest
from pictures import noise
from talk import EXACT, assistant, last_logits, text_of, user

import pyvllama
from pyvllama.errors import BackendError, ConfigError, ContextOverflow, FormatError

DEFAULTS = {"kv_type": "f16", "cross_kv_type": "f16", "flash_attn": None}
OPTIONS = {
    "exact": EXACT,
    "as users get it": DEFAULTS,
    "flash attention": {**DEFAULTS, "flash_attn": True},
    "no flash attention": {**DEFAULTS, "flash_attn": False},
    "bf16": {**DEFAULTS, "kv_type": "bf16", "cross_kv_type": "bf16"},
    "small batches": {**EXACT, "n_batch": 16, "n_ubatch": 8},
}


def conversations():
    """Name -> what is said before saving, and the question afterwards."""
    one, two = noise(60, 20), noise(20, 60, seed=1)
    return {
        "text": ([user("Hello")], "And you?"),
        "a picture": ([user(one, "What is this?")], "Why?"),
        "two pictures at once": ([user(one, two, "What differs?")], "Why?"),
        "two pictures in turns": ([user(one, "What?"), assistant("A ring."), user(two, "And this?")], "Why?"),
        "the same picture twice": ([user(one, "What?"), assistant("A ring."), user(one, "And this?")], "Why?"),
    }


def go_on(llm, messages, question):
    """The next turn: (its cost, its answer, the logits after it)."""
    got = llm.chat([*messages, user(question)], max_tokens=8, temperature=0)
    return got["timings"], text_of(got), last_logits(llm)


def assert_the_same(llm, other, messages, question):
    (cost, text, logits), (other_cost, other_text, other_logits) = (go_on(m, messages, question) for m in (llm, other))
    assert text == other_text
    np.testing.assert_array_equal(logits, other_logits)
    for key in ("prompt_n", "image_cached"):
        assert cost[key] == other_cost[key]
    assert cost["image_encode_ms"] == 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", conversations())
def test_it_goes_on_to_the_last_bit(load_tiny, tmp_path, options, name):
    messages, question = conversations()[name]
    saved, loaded = load_tiny(**OPTIONS[options]), load_tiny(**OPTIONS[options])
    loaded.chat([user(noise(seed=5), "Something else " * 20)], max_tokens=3)  # what is there before is replaced
    answer = text_of(saved.chat(messages, max_tokens=12, temperature=0))
    saved.save_session(tmp_path / "session")
    n = loaded.load_session(tmp_path / "session")
    assert n == saved._session.n_past == loaded._session.n_past
    assert_the_same(loaded, saved, [*messages, assistant(answer)], question)


def test_the_bundled_model(llm, sample, tmp_path):
    messages = [user(sample("01_square.png"), "What colour is the ring?")]
    messages.append(assistant(text_of(llm.chat(messages))))
    llm.save_session(tmp_path / "session")
    with pyvllama.load(n_threads=1) as other:
        other.load_session(tmp_path / "session")
        assert_the_same(other, llm, messages, "How many shapes are there?")


def test_quantized_cache(load_tiny, tmp_path):
    """q8_0 wants rows of whole blocks, which "base" has and "small" may not."""
    options = {"kv_type": "q8_0", "cross_kv_type": "f16", "flash_attn": None}
    try:
        saved, loaded = load_tiny("base", **options), load_tiny("base", **options)
    except BackendError:
        pytest.skip("rows of this model are no whole blocks")
    messages = [user(noise(), "Hello")]
    messages.append(assistant(text_of(saved.chat(messages, max_tokens=5, temperature=0))))
    saved.save_session(tmp_path / "session")
    loaded.load_session(tmp_path / "session")
    assert_the_same(loaded, saved, messages, "Why?")


def test_saving_changes_nothing(load_tiny, tmp_path):
    one, other = load_tiny(), load_tiny()
    messages = [user(noise(), "Hello")]
    for llm in (one, other):
        llm.chat(messages, max_tokens=5, temperature=0)
    one.save_session(tmp_path / "session")
    one.save_session(tmp_path / "session")
    assert_the_same(one, other, [*messages, assistant("Hm.")], "Why?")
    assert (tmp_path / "session").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


def test_an_empty_session(load_tiny, tmp_path):
    llm = load_tiny()
    llm.save_session(tmp_path / "session")
    llm.chat([user("Hello")], max_tokens=2)
    assert llm.load_session(tmp_path / "session") == 0
    assert llm._session.n_past == 0
    assert llm.chat([user("Hello")], max_tokens=1)["timings"]["prompt_n"] > 5


def test_a_picture_that_left_the_cache_is_saved_too(load_tiny, tmp_path):
    """Without a cache the same picture in two turns stands in the session encoded twice; it is saved once."""
    saved, loaded = load_tiny(image_cache_bytes=0), load_tiny()
    saved.chat([user(noise(), "What?"), assistant("A ring."), user(noise(), "And this?")], max_tokens=2)
    saved.save_session(tmp_path / "session")
    loaded.chat([user(noise(), "What?")], max_tokens=1)  # has it already
    kept = loaded._images.encode(noise()).states
    loaded.load_session(tmp_path / "session")
    assert {id(cell.image) for cell in loaded._session.cells if cell.image} == {id(kept)}


def test_into_a_larger_context_and_out_of_a_smaller_one(load_tiny, tmp_path):
    small, large = load_tiny(n_ctx=256), load_tiny(n_ctx=768)
    messages = [user(noise(), "Hello")]
    small.chat(messages, max_tokens=3, temperature=0)
    small.save_session(tmp_path / "session")
    large.load_session(tmp_path / "session")
    assert_the_same(large, small, [*messages, assistant("Hm.")], "Why?")
    large.chat([user("word " * 80)], max_tokens=1)
    large.save_session(tmp_path / "long")
    with pytest.raises(ContextOverflow, match=r"long: the session has \d+ positions, the context 256: .*n_ctx"):
        small.load_session(tmp_path / "long")


def test_after_other_calls_had_been_cut_off(load_tiny, tmp_path):
    """Positions that were given up and decoded anew, in the same cells of the KV cache."""
    saved, loaded = load_tiny(), load_tiny()
    for question in ("word " * 80, "Hello"):
        saved.chat([user(noise(), question)], max_tokens=3, temperature=0)
    saved.save_session(tmp_path / "session")
    loaded.load_session(tmp_path / "session")
    assert_the_same(loaded, saved, [user(noise(), "Hello")], "Why?")


# --- refusals ---


@pytest.fixture
def session(load_tiny, tmp_path):
    load_tiny().chat([user(noise(), "Hello")], max_tokens=3)
    llm = load_tiny()
    llm.chat([user(noise(), "Hello")], max_tokens=3)
    llm.save_session(tmp_path / "session")
    return tmp_path / "session"


def refused(llm, path, match):
    """Refused, and the model goes on with what it had."""
    llm.chat([user(noise(), "Else")], max_tokens=1)
    before = llm._session.cells
    with pytest.raises(FormatError, match=match) as caught:
        llm.load_session(path)
    assert str(path) in str(caught.value)
    assert llm._session.cells == before
    assert llm.chat([user(noise(), "Else")], max_tokens=1)["timings"]["prompt_n"] == 1


def test_another_model(session, load_tiny):
    refused(load_tiny("two_tiles"), session, "another text model")


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        ({"text_type": "f16", "cross_type": "f32"}, "another text model, or the same in another quantization"),
        ({"mmproj_type": "f16"}, "another mmproj"),
    ],
)
def test_the_same_model_in_other_types(session, tiny_pair, pair, match):
    files = tiny_pair("small", **pair)
    with pyvllama.load(files.text, files.mmproj, **EXACT, n_ctx=512) as llm:
        refused(llm, session, match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kv_type": "f16"}, r"another kv_type \('f32', here it is 'f16'\)"),
        ({"cross_kv_type": "bf16"}, "another cross_kv_type"),
    ],
)
def test_the_same_model_with_other_options(session, load_tiny, options, match):
    refused(load_tiny(**options), session, match)


def test_flash_attention_otherwise(session, load_tiny):
    """llama.cpp itself refuses this one: V lies otherwise. The session is empty, and goes on."""
    llm = load_tiny(flash_attn=True)
    llm.chat([user(noise(), "Else")], max_tokens=1)
    with pytest.raises(FormatError, match="flash_attn"):
        llm.load_session(session)
    assert llm._session.n_past == 0
    np.testing.assert_array_equal(
        llm.logits([user(noise(), "Hello")]), load_tiny(flash_attn=True).logits([user(noise(), "Hello")])
    )


def test_what_is_no_session(load_tiny, tmp_path, tiny_pair):
    llm = load_tiny()
    (tmp_path / "empty").touch()
    refused(llm, tmp_path / "empty", "another kind")
    refused(llm, tiny_pair("small").text, "another kind")
    refused(llm, tmp_path / "nothing", "No such file")
    refused(llm, tmp_path, "regular file")


def test_where_it_cannot_be_written(load_tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be saved to .*nowhere"):
        load_tiny().save_session(tmp_path / "nowhere" / "session")
    with pytest.raises(ConfigError, match="cannot be saved"):
        load_tiny().save_session(tmp_path)


def test_a_closed_model(load_tiny, session):
    llm = load_tiny()
    llm.close()
    for call in (llm.save_session, llm.load_session):
        with pytest.raises(BackendError, match="closed"):
            call(session)


def test_a_stream_ends_when_a_session_is_loaded(load_tiny, session):
    llm = load_tiny()
    stream = llm.chat([user(noise(), "Hello")], max_tokens=20, stream=True)
    next(stream)
    llm.save_session(session)  # which does not end it
    next(stream)
    llm.load_session(session)
    with pytest.raises(BackendError, match="another call"):
        list(stream)
