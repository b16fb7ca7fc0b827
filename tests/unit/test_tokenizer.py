"""Token ids and back, over llama.cpp's vocabulary of the pocket model; equal to the tokenizer it was converted from."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvllama._runtime import llama_cpp, set_fields
from pyvllama.tokenizer import Tokenizer, well_formed

SPECIALS = ["<|image|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|reserved_special_token_3|>"]
TEXTS = [
    "", " ", "Hello", " Hello", "Hello world, how's it?", "\n\n", " \n \t ", "1234567", "3.14", "naïve café",
    "日本語です", "𝄞👩‍👩‍👧", "<|image|>", "a<|eot_id|>b", "<|", "|>", "<|image", "\0", "a\0b", "\u2028",
    "\ue000", "don't DON'T",
    "x" * 1000, " " * 500, "﷽", "\r\n", "שלום", "e\u0301",
]  # fmt: skip

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def tokenizer(pocket_pair):
    params = llama_cpp.llama_model_default_params()
    set_fields(params, vocab_only=True)
    model = llama_cpp.llama_model_load_from_file(str(pocket_pair.text).encode(), params)
    assert model
    yield Tokenizer(llama_cpp.llama_model_get_vocab(model))
    llama_cpp.llama_model_free(model)


@pytest.fixture(scope="module")
def plain_reference(pocket_checkpoint):
    """Hugging Face's tokenizer without its added tokens: what text that holds none of them becomes."""
    tokenizers = pytest.importorskip("tokenizers")
    data = json.loads((pocket_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": [], "post_processor": None}))


def bytes_of(tokenizer, ids):
    return b"".join(map(tokenizer.piece, ids))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_byte_for_byte(tokenizer, text):
    assert bytes_of(tokenizer, tokenizer.tokenize(text)) == text.encode()


@shared
@given(st.text(max_size=60))
def test_any_text_comes_back_byte_for_byte(tokenizer, text):
    assert bytes_of(tokenizer, tokenizer.tokenize(text)) == text.encode()


@pytest.mark.parametrize("text", SPECIALS)
def test_special_tokens_are_text_unless_asked_for(tokenizer, text):
    ids = tokenizer.tokenize(f"a {text} b")
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert bytes_of(tokenizer, ids) == f"a {text} b".encode()
    assert tokenizer.special_tokens[text] in tokenizer.tokenize(f"a {text} b", parse_special=True)
    assert tokenizer.tokenize(text, parse_special=True) == [tokenizer.special_tokens[text]]


def test_no_bos_or_eos_is_added(tokenizer):
    assert tokenizer.tokenize("") == []
    assert tokenizer.bos not in tokenizer.tokenize("Hello")


def test_the_vocabulary_is_the_checkpoints(tokenizer, pocket_checkpoint):
    data = json.loads((pocket_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in data["added_tokens"] if token["special"]}
    assert special.items() <= tokenizer.special_tokens.items()
    assert list(tokenizer.special_tokens.values()) == sorted(tokenizer.special_tokens.values())
    config = json.loads((pocket_checkpoint / "config.json").read_text(encoding="utf-8"))
    assert tokenizer.n_tokens == config["text_config"]["vocab_size"] + 8
    assert tokenizer.bos == special["<|begin_of_text|>"]
    assert tokenizer.eos in tokenizer.eog
    assert {special["<|eot_id|>"], special["<|end_of_text|>"]} <= tokenizer.eog
    assert special["<|image|>"] == config["image_token_index"] not in tokenizer.eog


def test_piece_of_special_tokens(tokenizer):
    eot = tokenizer.special_tokens["<|eot_id|>"]
    assert tokenizer.piece(eot) == b""
    assert tokenizer.piece(eot, special=True) == b"<|eot_id|>"


@pytest.mark.parametrize("token", [-1, 10**6, -(2**31), 2**31])
def test_tokens_outside_the_vocabulary(tokenizer, token):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.piece(token)


def test_every_token_has_a_piece(tokenizer):
    for token in range(tokenizer.n_tokens):
        assert isinstance(tokenizer.piece(token, special=True), bytes)


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert well_formed("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert well_formed("\ud834\udd1e") == "𝄞"  # JSON's spelling of one character
    assert well_formed("é𝄞") == "é𝄞"
    assert bytes_of(tokenizer, tokenizer.tokenize("a\ud800")) == "a\ufffd".encode()


def test_long_texts(tokenizer):
    rng = random.Random(0)
    text = "".join(rng.choice("ab <|>\né") for _ in range(200_000))
    assert bytes_of(tokenizer, tokenizer.tokenize(text)) == text.encode()


@pytest.mark.reference
@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_hugging_faces(tokenizer, plain_reference, text):
    assert tokenizer.tokenize(text) == plain_reference.encode(text, add_special_tokens=False).ids


@pytest.mark.reference
@shared
@given(
    st.text(
        alphabet=st.one_of(st.sampled_from("abIt's 019 \n\t<|>_.,é日"), st.characters(exclude_categories=["Cs", "Cn"])),
        max_size=40,
    )
)
def test_ids_of_any_text_equal_hugging_faces(tokenizer, plain_reference, text):
    assert tokenizer.tokenize(text) == plain_reference.encode(text, add_special_tokens=False).ids
