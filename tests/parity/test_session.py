"""The Session layer: what it keeps, reuses and forgets never changes a number."""

import numpy as np
import pytest
from cases import make_case
from invariants import F32_BOUND, max_error
from tiny_configs import CONFIGS

from pyvllama.context import Context, ContextParams
from pyvllama.errors import ContextOverflow, PromptError
from pyvllama.model import Model
from pyvllama.session import Cell, Session

CONFIG = CONFIGS["small"]


@pytest.fixture(scope="module")
def model(tiny_pair):
    pair = tiny_pair("small")
    model = Model(pair.text, pair.mmproj, n_threads=1, cross_kv_type="f32")
    yield model
    model.close()


@pytest.fixture
def make_context(model):
    made = []

    def make(**options):
        options = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "kv_type": "f32", "flash_attn": False} | options
        made.append(Context(model, ContextParams(**options)))
        return made[-1]

    yield make
    for context in made:
        context.close()


@pytest.fixture(scope="module")
def cells(model):
    """cells(case) -> its prompt, every picture encoded once."""
    known = {}

    def get(case):
        out, images = [], iter(case.images)
        for token in case.token_ids:
            image = None
            if token == case.image_token:
                pixels, ratio_id = next(images)
                key = (pixels.tobytes(), ratio_id)
                if key not in known:
                    known[key] = model.mmproj.encode(pixels, ratio_id)[0]
                image = known[key]
            out.append(Cell(token, image))
        return out

    return get


def last_row(session, prompt):
    """The last row's logits by way of prefill, as generation reads them."""
    from pyvllama._runtime import llama_cpp

    session.prefill(prompt)
    logits = llama_cpp.llama_get_logits_ith(session.context.handle, -1)
    return np.ctypeslib.as_array(logits, shape=(CONFIG.vocab_size,)).copy()


@pytest.mark.parametrize("n_batch", [1, 4, 128])
@pytest.mark.parametrize("layout", ["three_mixed", "three_consecutive", "image_last", "text_only"])
def test_logits(make_context, cells, expected, layout, n_batch):
    case = make_case("small", layout)
    got = Session(make_context(n_batch=n_batch)).logits(cells(case))[:, : CONFIG.vocab_size]
    assert expected("small").logits_error(case, got) <= F32_BOUND


def test_reuse_of_a_common_beginning_changes_nothing(make_context, cells):
    """A chat grows turn by turn, is edited, and gets other pictures: each prefill equals one from scratch."""
    grown = cells(make_case("small", "later_turn"))
    other_picture = [
        Cell(c.token, cells(make_case("small", "two_images"))[5].image if c.image else None) for c in grown
    ]
    edited = [*grown[:10], Cell(1), *grown[11:]]
    session, fresh = Session(make_context()), Session(make_context())
    history = [grown[:3], grown[:12], grown, grown, grown[:20], other_picture, edited, grown[:5], grown]
    for prompt in history:
        before = session.n_past
        got = last_row(session, prompt)
        fresh.truncate(0)
        assert max_error(got, last_row(fresh, prompt)) <= F32_BOUND
        assert session.n_past == len(prompt), before


def test_reuse_counts_only_what_is_new(make_context, cells):
    prompt = cells(make_case("small", "two_images"))
    session = Session(make_context())
    assert session.prefill(prompt[:-4]) == len(prompt) - 4
    assert session.prefill(prompt) == 4
    assert session.prefill(prompt) == 1
    changed = [
        Cell(c.token, cells(make_case("small", "image_first"))[0].image if i == 5 else c.image)
        for i, c in enumerate(prompt)
    ]
    assert session.prefill(changed) == len(prompt) - 5


def test_append_equals_prefill(make_context, cells):
    prompt = cells(make_case("small", "three_mixed"))
    whole, session = Session(make_context()), Session(make_context())
    want = last_row(whole, prompt)
    session.prefill(prompt[:3])
    for cell in prompt[3:-1]:
        session.append(cell)
    assert max_error(last_row(session, prompt), want) <= F32_BOUND


def test_sessions_share_a_context(make_context, cells, expected):
    """Two sequences with different pictures, taking turns."""
    names = ["text_image_text", "two_images"]
    context = make_context(n_seq_max=2)
    sessions = [Session(context, seq) for seq in (0, 1)]
    prompts = [cells(make_case("small", name)) for name in names]
    got = [last_row(session, prompt[:9]) for session, prompt in zip(sessions, prompts, strict=True)]
    got = [last_row(session, prompt) for session, prompt in zip(sessions, prompts, strict=True)]
    for name, prompt, row in zip(names, prompts, got, strict=True):
        alone = Session(make_context())
        assert max_error(row, last_row(alone, prompt)) <= F32_BOUND, name


def test_a_refused_prompt_leaves_the_session_as_it_was(make_context, cells):
    prompt = cells(make_case("small", "two_images"))
    session = Session(make_context(n_ctx=32))
    want = last_row(session, prompt[:20])
    n_ctx = session.context.n_ctx
    with pytest.raises(ContextOverflow, match=str(n_ctx)):
        session.prefill([Cell(1)] * (n_ctx + 1))
    with pytest.raises(PromptError, match="empty"):
        session.prefill([])
    assert session.n_past == 20
    np.testing.assert_allclose(last_row(session, prompt[:20]), want, rtol=0, atol=1e-4)
