"""Options of a generation against their definitions: the tests read the logits and choose for themselves."""

from collections import Counter

import numpy as np
import pytest
from talk import text_of, user

from pyvllama.generation import generate
from pyvllama.sampler import Sampler
from pyvllama.session import Cell
from pyvllama.types import SamplingParams, Timings

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 24}


@pytest.fixture
def prompt(endless):
    """Cells of a prompt with a picture in it."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return endless._cells([user(picture, "Tell me")], Timings(), None)


def answer(llm, prompt, **options):
    """Token ids, as generation yields them."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 24, **options})
    llm._session.prefill(prompt)
    return [sampled.token for sampled in generate(llm._session, params, Timings())]


def chosen_by_definition(llm, prompt, n, change):
    """Greedy choice from logits that `change(logits, tokens so far)` alters in place: one full decode a token."""
    tokens = []
    for _ in range(n):
        row = llm._session.logits([*prompt, *map(Cell, tokens)])[-1, : llm.model.n_vocab].astype(np.float64)
        change(row, tokens)
        tokens.append(int(row.argmax()))
    return tokens


def penalties(repeat=1.0, presence=0.0, frequency=0.0, last_n=64):
    """llama.cpp's definition, which is OpenAI's for presence and frequency; counted over the answer's last tokens."""

    def change(row, tokens):
        for token, count in Counter(tokens[-last_n:] if last_n else []).items():
            row[token] = row[token] / repeat if row[token] > 0 else row[token] * repeat
            row[token] -= presence + frequency * count

    return change


def test_greedy_takes_the_largest_logit(endless, prompt):
    assert answer(endless, prompt) == chosen_by_definition(endless, prompt, 24, lambda row, tokens: None)


@pytest.mark.parametrize(
    ("options", "definition"),
    [
        ({"repeat_penalty": 1.8}, {"repeat": 1.8}),
        ({"presence_penalty": 3.0}, {"presence": 3.0}),
        ({"frequency_penalty": 0.9}, {"frequency": 0.9}),
        ({"frequency_penalty": -0.5}, {"frequency": -0.5}),
        (
            {"repeat_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
            {"repeat": 1.3, "presence": 0.5, "frequency": 0.4},
        ),
        ({"presence_penalty": 50.0, "penalty_last_n": 3}, {"presence": 50.0, "last_n": 3}),
        ({"presence_penalty": 50.0, "penalty_last_n": -1}, {"presence": 50.0}),
        ({"presence_penalty": 50.0, "penalty_last_n": 0}, {"last_n": 0}),
    ],
    ids=str,
)
def test_penalties_are_what_they_are_defined_to_be(endless, prompt, options, definition):
    got = answer(endless, prompt, **options)
    assert got == chosen_by_definition(endless, prompt, 24, penalties(**definition))
    if options.get("penalty_last_n") != 0 and options.get("frequency_penalty", 0) >= 0:
        assert got != answer(endless, prompt), "the option changed nothing: the test shows nothing"


def test_a_heavy_presence_penalty_lets_no_token_come_twice(endless, prompt):
    got = answer(endless, prompt, presence_penalty=100.0)
    assert len(set(got)) == len(got)


def test_penalties_do_not_count_the_prompt(endless, prompt):
    """A word of the question is no repetition."""
    first = answer(endless, prompt, max_tokens=1)[0]
    asked = [*prompt, Cell(first), *prompt[-4:]]
    assert answer(endless, asked, max_tokens=1) == answer(endless, asked, max_tokens=1, repeat_penalty=100.0)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_a_choice_of_one_is_greedy_at_any_temperature(endless, prompt, options, seed):
    options = {"top_p": 1.0, **options}
    assert answer(endless, prompt, temperature=5.0, seed=seed, **options) == answer(endless, prompt)


def seen_after(llm, prompt, n=400, **options):
    """Which first tokens n seeds choose."""
    llm._session.prefill(prompt)
    tokens = []
    for seed in range(n):
        sampler = Sampler(llm.model, SamplingParams(seed=seed, **{"temperature": 1.0, "top_p": 1.0, **options}))
        tokens.append(sampler.sample(llm._session.context).token)
        sampler.close()
    return tokens


def probabilities(llm, prompt, temperature=1.0):
    row = llm._session.logits(prompt)[-1, : llm.model.n_vocab].astype(np.float64) / temperature
    p = np.exp(row - row.max())
    return p / p.sum()


def test_top_k_keeps_the_k_likeliest(endless, prompt):
    p = probabilities(endless, prompt, 3.0)
    seen = set(seen_after(endless, prompt, temperature=3.0, top_k=3))
    assert seen == set(np.argsort(-p)[:3].tolist())


def test_top_p_keeps_the_nucleus(endless, prompt):
    p = probabilities(endless, prompt)
    by_rank = np.argsort(-p)
    nucleus = by_rank[: int(np.searchsorted(np.cumsum(p[by_rank]), 0.3)) + 1]
    assert 1 < len(nucleus) < 100
    assert set(seen_after(endless, prompt, top_p=0.3)) <= set(nucleus.tolist())
    assert not set(seen_after(endless, prompt)) <= set(nucleus.tolist())


def test_min_p_is_relative_to_the_likeliest(endless, prompt):
    p = probabilities(endless, prompt)
    kept = set(np.flatnonzero(p >= 0.4 * p.max()).tolist())
    assert 1 < len(kept) < 100
    assert set(seen_after(endless, prompt, min_p=0.4)) <= kept
    assert not set(seen_after(endless, prompt)) <= kept


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_temperature_divides_the_logits(endless, prompt, temperature):
    """The likeliest token's share among 400 seeds, within four standard deviations."""
    p = probabilities(endless, prompt, temperature)
    share = np.mean([t == p.argmax() for t in seen_after(endless, prompt, temperature=temperature)])
    assert abs(share - p.max()) < 4 * np.sqrt(p.max() * (1 - p.max()) / 400)


def test_the_image_token_and_its_padding_are_never_an_answer(endless, prompt):
    """Their rows of the output matrix copy a token's that is never used; here even that one would show."""
    assert endless.model.n_vocab < endless.model.tokenizer.n_tokens
    seen = seen_after(endless, prompt, n=2000, temperature=100.0)
    assert max(seen) < endless.model.n_vocab
    assert len(set(seen)) > endless.model.n_vocab // 2


# --- seeds, through the public API ---


def test_the_same_seed_gives_the_same_answer(endless):
    messages = [user("Tell me")]
    for seed in (0, 7, 2**32 - 2):
        assert len({text_of(endless.chat(messages, seed=seed, **SAMPLED)) for _ in range(3)}) == 1


def test_other_seeds_give_other_answers(endless):
    messages = [user("Tell me")]
    assert len({text_of(endless.chat(messages, seed=seed, **SAMPLED)) for seed in range(8)}) == 8


def test_no_seed_gives_another_answer_each_time(endless):
    messages = [user("Tell me")]
    assert len({text_of(endless.chat(messages, **SAMPLED)) for _ in range(4)}) == 4


def test_a_seed_means_nothing_to_greedy_choice(endless):
    messages = [user("Tell me")]
    answers = {text_of(endless.chat(messages, seed=s, temperature=0, max_tokens=24)) for s in (None, 1, 2)}
    assert len(answers) == 1


def test_an_abandoned_generation_leaves_the_session_one_token_behind(endless, prompt):
    """Every token is decoded only when the next one is asked for."""
    session = endless._session
    want = answer(endless, prompt)
    for n in (1, 2, 5):
        session.prefill(prompt)
        tokens = generate(session, GREEDY, Timings())
        got = [next(tokens).token for _ in range(n)]
        tokens.close()
        assert (got, session.n_past) == (want[:n], len(prompt) + n - 1)
    assert answer(endless, prompt) == want


def test_penalties_take_no_memory_for_tokens_that_cannot_be(llm):
    """llama.cpp would take 8 GiB for these."""
    import resource

    options = {"repeat_penalty": 1.1, "penalty_last_n": 2**31 - 1}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Sampler(llm.model, SamplingParams(**options)).close()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100_000
