"""Drafts that say what a test wants: right, wrong, or nonsense."""

import numpy as np
import pytest

from pyvllama.draft import Draft


class Scripted(Draft):
    """Says what a function of (tokens so far, n) says; notes what it was asked."""

    def __init__(self, script, n_max=4):
        super().__init__(n_max)
        self.script = script
        self.asked = []

    def propose(self, tokens, n):
        self.asked.append((list(tokens), n))
        return self.script(tokens, n)


def follows(texts, tokens, n):
    """What follows in the one of the known texts that begins with these tokens."""
    n_tokens = len(tokens)
    return next((text[n_tokens : n_tokens + n] for text in texts if text[:n_tokens] == list(tokens)), [])


def scripts(model, texts):
    """Name -> a script: guesses of every kind, made from the answers that are known to come."""
    n_vocab, eog = model.n_vocab, min(model.tokenizer.eog)

    def wrong(tokens, n):
        return [(token + 1) % n_vocab for token in follows(texts, tokens, n)] or [5] * n

    def half_right(tokens, n):
        return [t if i % 3 < 2 else (t + 1) % n_vocab for i, t in enumerate(follows(texts, tokens, n))]

    return {
        "right": lambda tokens, n: follows(texts, tokens, n),
        "wrong": wrong,
        "half right": half_right,
        "sometimes silent": lambda tokens, n: half_right(tokens, n) if len(tokens) % 3 else [],
        "silent": lambda tokens, n: [],
        "longer than asked": lambda tokens, n: follows(texts, tokens, 1000) + [7] * 1000,
        "ends": lambda tokens, n: [eog] * n,
        "ends later": lambda tokens, n: [*follows(texts, tokens, 1), eog, *follows(texts, tokens, n)],
        "no tokens": lambda tokens, n: [-1, 10**9, n_vocab],
        "no tokens later": lambda tokens, n: [*follows(texts, tokens, 1), n_vocab, 10**9, -5],
        "the image token": lambda tokens, n: [*follows(texts, tokens, 1), model.image_token],
        "an array": lambda tokens, n: np.array(wrong(tokens, n)),
    }


def said(completion):
    """What must be equal: all of it but names, times and what was guessed."""
    choices = completion["choices"]
    logprobs = [choice["logprobs"] for choice in choices]
    return [{**choice, "logprobs": None} for choice in choices], completion["usage"], logprobs


def assert_same_answer(got, want):
    (choices, usage, logprobs), (want_choices, want_usage, want_logprobs) = said(got), said(want)
    assert choices == want_choices
    assert usage == want_usage
    for ours, theirs in zip(logprobs, want_logprobs, strict=True):
        for a, b in zip(ours["content"] if ours else (), theirs["content"] if theirs else (), strict=True):
            assert a["token"] == b["token"]
            assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-4)
            assert [t["token"] for t in a["top_logprobs"]] == [t["token"] for t in b["top_logprobs"]]
