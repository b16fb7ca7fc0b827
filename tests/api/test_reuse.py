"""What is kept between calls, pictures and prompt beginnings, changes the cost and never a number."""

import numpy as np
import pytest
from invariants import max_error
from PIL import Image
from talk import assistant, data_uri, last_logits, text_of, user

BOUND = 1e-5  # of the logits' RMS


@pytest.fixture
def fresh(load_tiny):
    return load_tiny()


def timings(llm, messages, **options):
    return llm.chat(messages, max_tokens=1, temperature=0, **options)["timings"]


# --- pictures ---


def test_however_a_picture_is_given(exact, sample):
    """The same pixels, so the same numbers to the last bit; and the picture is encoded once."""
    path = sample("01_square.png")
    pixels = Image.open(path).convert("RGB")
    urls = [str(path), data_uri(path), path.as_uri()]
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), pixels, np.asarray(pixels)]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls[:2]]
    parts += [{"type": "image_url", "image_url": str(path)}]  # a short form that many clients send
    parts += [{"type": "image", "image": source} for source in sources]
    question = {"type": "text", "text": "Hello"}
    all_logits = [exact.logits([{"role": "user", "content": [part, question]}]) for part in parts]
    for part, logits in zip(parts, all_logits, strict=True):
        np.testing.assert_array_equal(logits, all_logits[0], err_msg=str(part)[:60])
    for source in sources:
        np.testing.assert_array_equal(exact.encode_image(source), exact.encode_image(path))


def test_a_picture_is_encoded_once(fresh, sample):
    messages = [user(sample("01_square.png"), "Hello")]
    first, second = timings(fresh, messages), timings(fresh, messages)
    assert first["image_encode_ms"] > 0
    assert (first["image_cached"], second["image_cached"], second["image_encode_ms"]) == (0, 1, 0)


def test_a_cached_picture_gives_the_same_logits(fresh, sample):
    messages = [user(sample("01_square.png"), "Hello")]
    np.testing.assert_array_equal(fresh.logits(messages), fresh.logits(messages))


def test_the_same_picture_twice_in_a_message(fresh, sample):
    path = sample("01_square.png")
    got = timings(fresh, [user(path, path, "Hello")])
    assert got["image_cached"] == 1
    assert got["image_encode_ms"] > 0


def test_a_message_without_pictures_reports_none(fresh):
    got = timings(fresh, [user("Hello")])
    assert (got["image_cached"], got["image_encode_ms"]) == (0, 0)


def test_without_a_cache_every_picture_is_encoded_again(load_tiny, sample):
    llm = load_tiny(image_cache_bytes=0)
    messages = [user(sample("01_square.png"), "Hello")]
    logits = llm.logits(messages)
    for _ in range(2):
        got = timings(llm, messages)
        assert got["image_cached"] == 0
        assert got["image_encode_ms"] > 0
    np.testing.assert_array_equal(llm.logits(messages), logits)


def test_a_picture_of_another_name_but_the_same_pixels_is_the_same(fresh, sample, tmp_path):
    Image.open(sample("01_square.png")).convert("RGB").save(tmp_path / "copy.bmp")
    timings(fresh, [user(sample("01_square.png"), "Hello")])
    assert timings(fresh, [user(tmp_path / "copy.bmp"), assistant("A."), user("B")])["image_cached"] == 1


# --- prompt beginnings ---


def test_a_second_turn_costs_what_is_new(llm, sample):
    messages = [user(sample("01_square.png"), "What colour is the ring?")]
    first = llm.chat(messages)
    messages += [assistant(text_of(first)), user("How many shapes are there?")]
    second = llm.chat(messages)
    usage = first["usage"]
    held = usage["prompt_tokens"] + usage["completion_tokens"] - 1  # the end token was never decoded
    assert second["timings"]["prompt_n"] == second["usage"]["prompt_tokens"] - held
    assert second["timings"]["image_cached"] == 1


def test_the_same_prompt_again_costs_one_token(fresh, sample):
    messages = [user(sample("01_square.png"), "Hello")]
    timings(fresh, messages)
    assert timings(fresh, messages)["prompt_n"] == 1


def test_another_picture_in_the_same_place_is_decoded_from_there_on(fresh, sample):
    timings(fresh, [user("Look: ", sample("01_square.png"), "Hello")])
    got = fresh.chat([user("Look: ", sample("02_wide.png"), "Hello")], max_tokens=1)
    position = got["usage"]["prompt_tokens"] - got["timings"]["prompt_n"]
    cells = fresh._session._cells
    assert cells[position].image is not None
    assert cells[position].token == fresh.model.image_token


def conversations(sample):
    """Each one as it may follow upon the one before: grown, edited, cut, with other pictures, begun anew."""
    one, two = sample("01_square.png"), sample("02_wide.png")
    first = [user(one, "What is this?")]
    second = [*first, assistant("A ring."), user("And now?")]
    third = [*second, assistant("Nothing."), user(two, "And this?")]
    return {
        "first": first,
        "second turn": second,
        "a picture in a later turn": third,
        "the same again": third,
        "the last question edited": [*third[:-1], user(two, "And that?")],
        "the first answer edited": [first[0], assistant("A cross."), *third[2:]],
        "the pictures swapped": [user(two, "What is this?"), *third[1:-1], user(one, "And this?")],
        "cut": first,
        "without pictures": [user("What is this?")],
        "two pictures": [user(one, two, "What is this?")],
        "the second picture gone": [user(one, "What is this?")],
    }


def test_what_is_kept_changes_no_number(load_tiny, sample):
    """After each step the logits that the answer is chosen from, against a whole decode by another model object."""
    chatting, fresh = load_tiny(), load_tiny()
    n_reused = 0
    for name, messages in conversations(sample).items():
        got = chatting.chat(messages, max_tokens=1, temperature=0)
        n_reused += got["usage"]["prompt_tokens"] - got["timings"]["prompt_n"]
        error = max_error(last_logits(chatting), fresh.logits(messages)[-1])
        assert error <= BOUND, f"{name}: {error:.1e}"
    assert n_reused > 50


def test_after_an_answer_the_next_turn_still_equals_a_fresh_run(load_tiny, sample):
    """The answer's tokens are in the cache, decoded one by one; they too count as prompt of the next turn."""
    chatting, fresh = load_tiny(), load_tiny()
    messages = [user(sample("01_square.png"), "What is this?")]
    for question in ("And now?", "Why?"):
        said = text_of(chatting.chat(messages, max_tokens=12, temperature=0))
        messages += [assistant(said), user(sample("02_wide.png"), question)]
    chatting.chat(messages, max_tokens=1, temperature=0)
    assert max_error(last_logits(chatting), fresh.logits(messages)[-1]) <= BOUND


def test_a_refused_call_forgets_nothing(fresh, sample):
    messages = [user(sample("01_square.png"), "Hello")]
    timings(fresh, messages)
    for bad in ([], [user("word " * 900)], [user(b"no image", "Hello")]):
        with pytest.raises(Exception, match=r"\w"):
            fresh.chat(bad)
    assert timings(fresh, messages)["prompt_n"] == 1
