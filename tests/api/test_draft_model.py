"""A second, small model as a draft: it keeps up with any text, can be stopped, and must have the same vocabulary."""

import threading
from types import SimpleNamespace

import pytest
from drafts import assert_same_answer
from talk import EXACT, assistant, text_of, user

import pyvllama
from pyvllama.draft_model import DraftModel, _check_vocabulary
from pyvllama.errors import BackendError, Cancelled, ConfigError, FormatError, ModelNotFound
from pyvllama.session import Cell


@pytest.fixture(scope="module")
def plain(pocket_pair):
    """The pocket model, nothing rounded, without a draft."""
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, **EXACT) as llm:
        yield llm


@pytest.fixture
def draft_model(pocket_pair, plain):
    draft = DraftModel(pocket_pair.text, plain.model, plain._params, 4)
    yield draft
    draft.close()


def test_a_model_guesses_its_own_words(pocket_pair, plain):
    """Without pictures the text model itself is always right."""
    with pyvllama.load(
        pocket_pair.text, pocket_pair.mmproj, n_ctx=512, draft=pocket_pair.text, n_draft=4, **EXACT
    ) as llm:
        messages = [user("Describe the picture.")]
        for question in ("Describe it.", "And another one?"):
            got = llm.chat(messages, temperature=0, max_tokens=40)
            assert_same_answer(got, plain.chat(messages, temperature=0, max_tokens=40))
            timings = got["timings"]
            assert timings["draft_n_accepted"] == timings["draft_n"] > 0
            messages += [assistant(text_of(got)), user(question)]


def greedy(llm, tokens, n):
    """What the text model says after these tokens."""
    found = []
    for _ in range(n):
        logits = llm._session.logits([Cell(token) for token in [*tokens, *found]])[-1, : llm.model.n_vocab]
        found.append(int(logits.argmax()))
    return found


def test_it_keeps_up_with_any_text(plain, draft_model):
    """Its KV cache is reused and cut back: each guess equals one from scratch."""
    tokens = plain.model.tokenizer.tokenize("Describe the picture, from the left to the right, and all of its colours.")
    for text in (tokens, tokens[:6], tokens, [*tokens, 5], [*tokens[:3], 9, *tokens[3:]], tokens[:1], tokens[4:]):
        assert draft_model.propose(text, 4) == greedy(plain, text, 4)


def test_pictures_are_left_out_for_it(plain, draft_model):
    tokens = plain.model.tokenizer.tokenize("Describe the picture.")
    with_image = [*tokens[:2], plain.model.image_token, *tokens[2:]]
    assert draft_model.propose(with_image, 4) == draft_model.propose(tokens, 4)
    assert draft_model.propose([plain.model.image_token], 4) == []
    assert draft_model.propose([10**8], 4) == []


def test_a_text_that_fills_its_context(plain, draft_model):
    tokens = (plain.model.tokenizer.tokenize("word ") * 600)[:512]
    assert len(draft_model.propose(tokens[:508], 4)) == 4
    assert len(draft_model.propose(tokens[:511], 4)) == 2
    assert len(draft_model.propose(tokens[:512], 4)) == 1
    assert draft_model.propose([*tokens, *tokens], 4) == []
    assert len(draft_model.propose(tokens[:20], 4)) == 4


def test_it_can_be_interrupted(plain, draft_model):
    tokens = plain.model.tokenizer.tokenize("Describe the picture.")
    want = draft_model.propose(tokens, 4)
    draft_model.interrupt(True)
    with pytest.raises(Cancelled):
        draft_model.propose([*tokens[:-1], 5], 4)
    draft_model.interrupt(False)
    assert draft_model.propose(tokens, 4) == want


def test_cancelling_reaches_it(pocket_pair, sample):
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, draft=pocket_pair.text, **EXACT) as llm:
        question = [user(sample("01_square.png"), "Describe the picture.")]
        want = text_of(llm.chat(question, temperature=0))
        timer = threading.Timer(0.3, llm.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            while True:
                llm.chat(question, temperature=0)
        assert text_of(llm.chat(question, temperature=0)) == want


def test_closed_with_the_model(pocket_pair):
    llm = pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, draft=pocket_pair.text, **EXACT)
    draft = llm._draft
    llm.close()
    llm.close()
    with pytest.raises(BackendError, match="closed"):
        draft.propose([1, 2, 3], 2)


# --- what cannot be a draft ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draft": "no/such.gguf"}, ModelNotFound, "no such draft model"),
        ({"draft": ""}, ModelNotFound, "empty"),
        ({"draft": "lookup", "n_draft": 0}, ConfigError, "n_draft must be between 1 and"),
        ({"draft": "lookup", "n_draft": 10**6}, ConfigError, "n_draft must be between 1 and"),
        ({"n_draft": 4}, ConfigError, "n_draft needs draft"),
    ],
    ids=str,
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        pyvllama.load(n_threads=1, **options)


def test_files_that_are_no_draft(llm, tiny_pair, tmp_path):
    with pytest.raises(FormatError, match="mmproj"):
        pyvllama.load(n_threads=1, draft=llm.model.mmproj_path)
    (tmp_path / "draft.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatError):
        pyvllama.load(n_threads=1, draft=tmp_path / "draft.gguf")
    with pytest.raises(ModelNotFound):
        pyvllama.load(n_threads=1, draft=tmp_path)
    with pytest.raises(FormatError, match="cannot draft for"):
        pyvllama.load(n_threads=1, draft=tiny_pair("small").text)


def test_another_vocabulary_is_refused_with_both_values():
    def file(tokens, control=()):
        types = [3 if i in control else 1 for i in range(len(tokens))]
        metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
        return SimpleNamespace(path="draft.gguf", metadata=metadata, text_path="model.gguf", text_metadata=metadata)

    words = [f"word{i}" for i in range(1000)]
    _check_vocabulary(file(words), file(words))
    _check_vocabulary(file(words), file([*words, "<|image|>", "<pad>"]))
    _check_vocabulary(file([*words, "<|im_start|>"]), file(words))
    _check_vocabulary(file([*words[:-1], "<|im_start|>"], control=[999]), file([*words[:-1], "<|x|>"], control=[999]))
    with pytest.raises(FormatError, match=r"draft.gguf cannot draft for model.gguf: its token 7 is 'other', .*'word7'"):
        _check_vocabulary(file([*words[:7], "other", *words[8:]]), file(words))
    with pytest.raises(FormatError, match="its vocabulary has 700 tokens, the model's 1000"):
        _check_vocabulary(file(words[:700]), file(words))
