"""The batch that answers share: who waits for whom, who goes on beside a long prompt, what a leaving request leaves."""

import pytest
from talk import EXACT

import pyvllama
from pyvllama.batching import Batcher, Request
from pyvllama.context import Context, ContextParams
from pyvllama.errors import BackendError, Cancelled
from pyvllama.sampler import Sampler
from pyvllama.session import Cell
from pyvllama.types import SamplingParams

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def model(tiny_pair, monkeypatch):
    pair = tiny_pair("small")
    with pyvllama.load(pair.text, pair.mmproj, **EXACT) as llm:
        monkeypatch.setattr(llm.model.tokenizer, "eog", frozenset())
        yield llm.model


@pytest.fixture
def make(model):
    """make(n_prompt_beside=None, n_seq_max=3, n_ctx=512) -> Batcher."""
    made = []

    def make(n_prompt_beside=None, n_seq_max=3, n_ctx=512):
        params = ContextParams(n_ctx=n_ctx, n_seq_max=n_seq_max, kv_type="f32", flash_attn=False, n_batch=64)
        made.append(Batcher(Context(model, params), n_prompt_beside))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()
        batcher.context.close()


class Asked:
    """A request that notes what happens to it."""

    def __init__(self, model, prompt, max_tokens=6, **options):
        self.tokens, self.ends, self.starts = [], [], 0
        sampler = Sampler(model, GREEDY)
        self.request = Request(
            [Cell(t) for t in prompt], sampler, max_tokens, self._take, self.ends.append, self._start, **options
        )

    def _take(self, sampled):
        self.tokens.append(sampled.token)
        return False

    def _start(self):
        self.starts += 1


def finish(batcher):
    while not batcher.is_idle:
        batcher.step()


def alone(make, model, prompt, max_tokens=6):
    batcher, asked = make(), Asked(model, prompt, max_tokens)
    batcher.start(asked.request)
    finish(batcher)
    return asked.tokens


def test_requests_that_come_together_compute_their_common_beginning_once(make, model):
    batcher = make()
    prompts = [[*range(20, 170), 200 + i] for i in range(3)]
    asked = [Asked(model, prompt) for prompt in prompts]
    for a in asked:
        batcher.start(a.request)
    finish(batcher)
    assert [a.request.n_prompt for a in asked] == [151, 1, 1]
    assert [a.tokens for a in asked] == [alone(make, model, prompt) for prompt in prompts]
    assert [a.ends for a in asked] == [["length"]] * 3


def test_a_follower_goes_on_alone_when_its_leader_leaves(make, model):
    batcher = make()
    leader, follower = Asked(model, range(20, 220)), Asked(model, [*range(20, 220), 7])
    batcher.start(leader.request)
    batcher.start(follower.request)
    batcher.step()
    assert batcher.cancel(leader.request)
    finish(batcher)
    assert isinstance(leader.ends[0], Cancelled)
    assert len(leader.ends) == 1
    assert follower.tokens == alone(make, model, [*range(20, 220), 7])
    assert follower.request.n_prompt == 201 - 64  # what the leader had computed is not lost


def test_short_beginnings_are_not_waited_for(make, model):
    batcher = make()
    first, second = Asked(model, [1, 2, 3, 4, *range(50, 90)]), Asked(model, [1, 2, 3, 4, *range(100, 110)])
    batcher.start(first.request)
    batcher.start(second.request)
    batcher.step()
    assert first.tokens
    assert second.tokens


def test_a_long_prompt_lets_the_others_go_on(make, model):
    batcher = make(n_prompt_beside=8)
    talker, reader = Asked(model, [5, 6, 7], max_tokens=100), Asked(model, range(10, 90))
    batcher.start(talker.request)
    batcher.step()
    batcher.start(reader.request)
    while not reader.tokens:
        batcher.step()
    assert len(talker.tokens) == 1 + 10  # a token with every eight rows of the prompt
    finish(batcher)
    assert reader.tokens == alone(make, model, range(10, 90))
    assert talker.tokens == alone(make, model, [5, 6, 7], 100)


def test_without_reuse_all_is_computed(make, model):
    batcher = make()
    for reuse, expected in ((True, 40), (True, 1), (False, 40)):
        asked = Asked(model, range(10, 50), reuse=reuse)
        batcher.start(asked.request)
        finish(batcher)
        assert asked.request.n_prompt == expected
        assert asked.starts == 1


def test_another_branch_does_not_overwrite_a_long_conversation(make, model):
    """Only the system prompt is common: the conversation stays for its next turn."""
    batcher = make()
    system = list(range(20, 60))
    for prompt in ([*system, *range(100, 200)], [*system, 9]):
        asked = Asked(model, prompt)
        batcher.start(asked.request)
        finish(batcher)
    assert asked.request.n_prompt == 1
    again = Asked(model, [*system, *range(100, 200), 3])
    batcher.start(again.request)
    finish(batcher)
    assert again.request.n_prompt == 1


def test_cancelled_in_any_state(make, model):
    batcher = make(n_seq_max=2, n_ctx=256)
    talker, rival = Asked(model, range(10, 110), max_tokens=None), Asked(model, range(110, 210), max_tokens=None)
    batcher.start(talker.request)
    batcher.start(rival.request)
    while not any(slot.paused for slot in batcher._slots):
        batcher.step()
    assert batcher.cancel(rival.request)  # put off, for want of room
    assert not batcher.cancel(rival.request)
    finish(batcher)
    assert talker.ends == ["length"]
    assert len(talker.tokens) == 256 - 100 + 1  # the last token needs no place
    assert talker.tokens[:20] == alone(make, model, range(10, 110), 20)
    assert [type(e) for e in rival.ends] == [Cancelled]


def test_what_a_receiver_raises_ends_its_own_request_only(make, model, monkeypatch):
    batcher = make()
    bad, good = Asked(model, [5, 6]), Asked(model, [8, 9])
    bad.request.on_token = lambda sampled: 1 / 0
    batcher.start(bad.request)
    batcher.start(good.request)
    finish(batcher)
    assert isinstance(bad.ends[0], BackendError)
    assert "ZeroDivisionError" in str(bad.ends[0])
    assert good.tokens == alone(make, model, [8, 9])


def test_after_a_failure_all_begins_anew(make, model):
    batcher = make()
    asked = [Asked(model, [i, 6, 7]) for i in range(3)]
    for a in asked:
        batcher.start(a.request)
    batcher.step()
    batcher.fail(BackendError("broken"))
    assert batcher.is_idle
    assert [str(a.ends[0]) for a in asked] == ["broken"] * 3
    again = Asked(model, [1, 6, 7])
    batcher.start(again.request)
    finish(batcher)
    assert again.request.n_prompt == 3
    assert again.tokens == alone(make, model, [1, 6, 7])
