"""pyvllama.Llama without images is llama_cpp.Llama, to the last bit.

The tests of llama-cpp-python 0.3.36 that have a model of some kind, and what stands for them here:

    tests/test_llama.py
    test_llama_cpp_tokenization                   test_tokens, test_only_the_vocabulary
    test_real_llama                               test_numbers, test_grammar, test_logits_processor,
                                                  test_a_saved_state_repeats_the_draw
    test_real_llama_repeated_prompt_cache         test_a_repeated_prompt
    test_exact_cached_prompt_reuse_...            test_an_exact_prompt_is_not_evaluated_again
    test_loaded_exact_cached_prompt_reuse_...     test_a_loaded_state_goes_on
    test_ram_cache_exact_prompt_hit_...           test_a_ram_cache
    test_shorter_prompt_prefix_reuse_...          test_a_shorter_prompt
      (each for a transformer; their recurrent and hybrid models are no Llama 3.2)
    test_real_llama_embeddings                    test_embeddings (of the text model; theirs is a BERT)

    Without counterpart:
    test_llama_cpp_version                        asks no model
    test_real_model                               llama_cpp._internals, which are used as they are
    test_recurrent_..., test_hybrid_model_...     models of other kinds
    tests/test_llama_chat_format.py               formatters alone; chats: test_chats, test_chat_formats
    tests/test_llama_grammar.py                   grammars alone; used: test_grammar
    tests/test_llama_speculative.py               the guesser alone; used: test_speculative_decoding

With images the same is tested in test_llama_images.py.
"""

import itertools
import pickle

import numpy as np
import pytest

import pyvllama
from pyvllama._runtime import llama_cpp
from pyvllama.errors import BackendError, ModelNotFound

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown fox"
CHAT = [{"role": "user", "content": "Who are you?"}]
NUMBERS = 'root ::= "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "10"'


def both(make, make_original, act, **options):
    """What `act` gives on ours and on the original."""
    return act(make(**options)), act(make_original(**options))


def text_of(completion):
    return completion["choices"][0]["text"]


def first_tokens(llama, tokens, n=3):
    return list(itertools.islice(llama.generate(tokens, temp=0.0), n))


def test_it_is_a_llama(make):
    llama = make()
    assert isinstance(llama, llama_cpp.Llama)
    assert type(llama) is pyvllama.Llama


@pytest.mark.parametrize("options", [{}, {"n_batch": 8, "n_ubatch": 4}, {"flash_attn": True}, {"type_k": 8}])
def test_numbers(make, make_original, options):
    def scores(llama):
        llama.eval(llama.tokenize(PROMPT.encode()))
        return llama.scores[: llama.n_tokens].copy()

    ours, theirs = both(make, make_original, scores, logits_all=True, **options)
    assert np.abs(theirs).max() > 0
    np.testing.assert_array_equal(ours, theirs)


def test_completions(make, make_original):
    def completion(llama):
        options = {"max_tokens": 12, "temperature": 0.9, "seed": 7, "top_k": 50, "min_p": 0.01, "repeat_penalty": 1.1}
        return text_of(llama(PROMPT, **options)), text_of(llama.create_completion(PROMPT, logit_bias={5: 3}, **options))

    ours, theirs = both(make, make_original, completion)
    assert ours == theirs


def test_chats(make, make_original):
    def chat(llama):
        options = {"messages": CHAT, "temperature": 0, "max_tokens": 20}
        answer = llama.create_chat_completion(**options)["choices"][0]
        deltas = [chunk["choices"][0]["delta"] for chunk in llama.create_chat_completion(stream=True, **options)]
        return answer, deltas, llama.chat_format

    ours, theirs = both(make, make_original, chat)
    assert ours == theirs
    assert ours[0]["message"]["content"] == "I am Pocket Vllama, a tiny vision model."


@pytest.mark.parametrize("chat_format", ["chatml", "llama-3", "chatml-function-calling"])
def test_chat_formats(make, make_original, chat_format):
    def chat(llama):
        llama.create_chat_completion(CHAT, temperature=0, max_tokens=5)
        return llama.input_ids[: llama.n_tokens].tolist()

    ours, theirs = both(make, make_original, chat, chat_format=chat_format)
    assert ours == theirs


def test_logprobs(make, make_original):
    def chat(llama):
        completion = llama.create_chat_completion(CHAT, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2)
        return completion["choices"][0]["logprobs"]

    ours, theirs = both(make, make_original, chat, logits_all=True)
    assert ours == theirs


def test_tokens(make, make_original):
    def tokens(llama):
        plain, special = b"Hello, \xc3\xa9 world", b"<|begin_of_text|>Hello<|eot_id|>"
        lists = [llama.tokenize(plain), llama.tokenize(plain, add_bos=False), llama.tokenize(special, special=True)]
        return lists, [llama.detokenize(ids, special=s) for ids in lists for s in (False, True)], llama.n_vocab()

    ours, theirs = both(make, make_original, tokens)
    assert ours == theirs


def test_only_the_vocabulary(make, make_original):
    ours, theirs = both(make, make_original, lambda llama: llama.tokenize(PROMPT.encode()), vocab_only=True)
    assert ours == theirs


def test_without_an_mmproj_nothing_is_seen(make):
    llama = make(vocab_only=True)
    with pytest.raises(BackendError, match="no mmproj"):
        llama.render([{"role": "user", "content": [{"type": "image", "image": b"..."}]}])


def test_grammar(make):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "true" | "false"', verbose=False)
    assert text_of(make()(PROMPT, max_tokens=8, grammar=grammar)) in {"true", "false"}


def test_logits_processor(make):
    llama = make()
    wanted = llama.tokenize(b"circle", add_bos=False)

    def prefer(input_ids, logits):
        assert (input_ids >= 0).all()
        logits[wanted[0]] += 1000
        return logits

    processors = llama_cpp.LogitsProcessorList([prefer])
    assert text_of(llama(PROMPT, max_tokens=1, logits_processor=processors)) == llama.detokenize(wanted[:1]).decode()


def test_a_repeated_prompt(make):
    llama = make()
    first, second = (text_of(llama(PROMPT, max_tokens=6, temperature=0)) for _ in range(2))
    assert first == second != ""


def test_an_exact_prompt_is_not_evaluated_again(make, monkeypatch):
    fresh, llama = make(), make()
    tokens = llama.tokenize(PROMPT.encode())
    expected = first_tokens(fresh, tokens)
    llama.eval(tokens)
    assert llama.input_ids[: llama.n_tokens].tolist() == tokens
    assert llama.sample(temp=0.0, idx=len(tokens) - 1) == expected[0]
    monkeypatch.setattr(llama, "reset", lambda: pytest.fail("the context was reset"))
    assert first_tokens(llama, tokens) == expected
    assert llama.n_tokens == len(tokens) + 2


def test_a_loaded_state_goes_on(make, make_original):
    fresh, source, other = make(), make_original(), make()  # a state of the original's
    tokens = fresh.tokenize(PROMPT.encode())
    expected = first_tokens(fresh, tokens)
    source.eval(tokens)
    other.eval(tokens[::-1])
    other.load_state(source.save_state())
    assert other.input_ids[: other.n_tokens].tolist() == tokens
    assert first_tokens(other, tokens) == expected


def test_a_saved_state_repeats_the_draw(make):
    llama = make()
    grammar = llama_cpp.LlamaGrammar.from_string(NUMBERS, verbose=False)
    llama(PROMPT, max_tokens=4)
    llama.set_seed(1337)
    state = llama.save_state()
    draws = [text_of(llama("Pick a number:", max_tokens=4, temperature=1.0, grammar=grammar)) for _ in range(6)]
    llama.load_state(state)
    assert text_of(llama("Pick a number:", max_tokens=4, temperature=1.0, grammar=grammar)) == draws[0]
    assert len(set(draws)) > 1


def test_a_ram_cache(make, monkeypatch):
    expected = make()(PROMPT, max_tokens=3, temperature=0)
    cache = llama_cpp.LlamaRAMCache()
    writer, reader = make(), make()
    writer.set_cache(cache)
    writer(PROMPT, max_tokens=3, temperature=0)
    reader.set_cache(cache)
    loads = []
    monkeypatch.setattr(reader, "load_state", lambda state: loads.append(pyvllama.Llama.load_state(reader, state)))
    assert text_of(reader(PROMPT, max_tokens=3, temperature=0)) == text_of(expected)
    assert len(loads) == 1


def test_a_shorter_prompt(make):
    fresh, llama = make(), make()
    tokens = fresh.tokenize(PROMPT.encode())
    expected = first_tokens(fresh, tokens[:8])
    llama.eval(tokens)
    assert first_tokens(llama, tokens[:8]) == expected


def test_speculative_decoding(make):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    plain, guessing = make(), make(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    assert text_of(guessing(PROMPT, max_tokens=20, temperature=0)) == text_of(
        plain(PROMPT, max_tokens=20, temperature=0)
    )


def test_embeddings(make, make_original):
    def embeddings(llama):
        return llama.embed("Hello"), llama.embed(["Hello", "Another one"], normalize=True)

    (one, two), theirs = both(make, make_original, embeddings, embedding=True, pooling_type=1)
    assert (one, two) == theirs
    assert np.linalg.norm(two[1]) == pytest.approx(1)


def test_pickled(make):
    llama = make(n_ctx=256, seed=3)
    copy = pickle.loads(pickle.dumps(llama))
    try:
        assert copy.n_ctx() == 256
        options = {"messages": CHAT, "temperature": 0}
        assert copy.create_chat_completion(**options)["choices"] == llama.create_chat_completion(**options)["choices"]
    finally:
        copy.close()


def test_too_long_a_prompt(make):
    llama = make(n_ctx=16)
    with pytest.raises(ValueError, match="exceed context window"):
        llama(PROMPT * 20)


def test_what_is_not_there(make, tmp_path):
    with pytest.raises(ModelNotFound):
        make(tmp_path / "none.gguf")


def test_closed(make):
    llama = make()
    llama.close()
    llama.close()
    with pytest.raises(BackendError, match="closed"):
        llama.render(CHAT)
