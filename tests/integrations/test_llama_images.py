"""pyvllama.Llama with images: the numbers of pyvllama.LLM, and llama_cpp.Llama's ways of reusing what it has done."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from grafts import with_own_tokens, without_image_token
from talk import EXACT, assistant, data_uri, user

import pyvllama
from pyvllama._runtime import llama_cpp
from pyvllama.errors import BackendError, ImageError, ImageTooLarge
from pyvllama.image.limits import ImageLimits
from pyvllama.image.source import load_image
from pyvllama.integrations import image_ids
from pyvllama.integrations.image_ids import ImageIds

F32 = {"type_k": 0, "type_v": 0, "cross_kv_type": "f32"}
GREEDY = {"temperature": 0, "max_tokens": 24}
QUIET = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
QUESTION = "What is in the picture?"


def answer(llama, messages, **options):
    return llama.create_chat_completion(messages, **{**GREEDY, **options})["choices"][0]["message"]["content"]


@pytest.fixture(scope="session")
def pictures(pocket_checkpoint):
    return sorted((pocket_checkpoint / "samples").glob("*.png"))[:3]


@pytest.fixture(scope="session")
def asked(pictures):
    """Three chats that differ in nothing but their picture."""
    return [[user(picture, QUESTION)] for picture in pictures]


@pytest.fixture(scope="session")
def expected(asked):
    """What a model says that knows nothing of the other chats. Three different answers."""
    answers = []
    for messages in asked:
        llama = pyvllama.Llama(None, **QUIET)
        answers.append(answer(llama, messages))
        llama.close()
    assert len(set(answers)) == 3
    return answers


# --- numbers ---


def spread(pictures):
    """Pictures alone, together and after one another's answers."""
    a, b, c = pictures
    return [user("Hello"), assistant("Hi."), user(a, "One"), assistant("Yes."), user(b, c, "Two", a, "and more")]


@pytest.mark.parametrize("n_batch", [512, 5])
def test_numbers(make, tiny_pair, pictures, n_batch):
    pair, messages = tiny_pair("small"), spread(pictures)
    with pyvllama.load(pair.text, pair.mmproj, n_batch=n_batch, **EXACT) as llm:
        expected = llm.logits(messages)
    llama = make(pair.text, logits_all=True, n_batch=n_batch, **F32)
    llama.eval(llama.render(messages))
    assert llama.n_tokens == len(expected)
    np.testing.assert_array_equal(llama.scores[: llama.n_tokens, : expected.shape[1]], expected)


@pytest.mark.parametrize("n_batch", [512, 5])
def test_numbers_of_a_text_file_without_image_token(make, pocket_pair, pictures, tmp_path, n_batch):
    text, messages = without_image_token(pocket_pair.text, tmp_path / "Own-8B-F32.gguf"), spread(pictures)
    with pyvllama.load(text, pocket_pair.mmproj, n_batch=n_batch, **EXACT) as llm:
        expected = llm.logits(messages)
    llama = make(text, mmproj_path=pocket_pair.mmproj, logits_all=True, n_batch=n_batch, **F32)
    tokens = llama.render(messages)
    llama.eval(tokens)
    np.testing.assert_array_equal(llama.scores[: llama.n_tokens], expected)
    assert llama.input_ids[: llama.n_tokens].tolist() == tokens
    assert b"One" in llama.detokenize(tokens)


def test_numbers_of_a_text_file_with_a_token_of_its_own_there(make, pocket_pair, pictures, tmp_path):
    """What its makers put at the image token's id is their token, and no picture."""
    text, messages = with_own_tokens(pocket_pair.text, tmp_path / "Own-8B-F32.gguf", 3), spread(pictures)
    with pyvllama.load(text, pocket_pair.mmproj, **EXACT) as llm:
        expected = llm.logits(messages)
        image = llm.model.image_token
    llama = make(text, mmproj_path=pocket_pair.mmproj, logits_all=True, **F32)
    llama.eval(llama.render(messages))
    np.testing.assert_array_equal(llama.scores[: llama.n_tokens], expected)
    assert image == llama.n_vocab()
    assert b"<|own_0|>" in llama.detokenize([image - 3], special=True)
    assert b"own" not in llama.detokenize(llama.render(messages), special=True)


def test_answers(asked, expected):
    with pyvllama.load(n_threads=1, n_ctx=512) as llm:
        for messages, said in zip(asked, expected, strict=True):
            assert llm.chat(messages, **GREEDY)["choices"][0]["message"]["content"] == said


def test_a_stream(make, asked, expected):
    chunks = list(make().create_chat_completion(asked[0], stream=True, **GREEDY))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected[0]


# --- what is reused ---


def test_pictures_are_told_apart(make, asked, expected):
    """The texts are the same to the last token: only the pictures say that nothing may be reused."""
    llama = make()
    for i in (0, 1, 1, 0, 2, 0):
        assert answer(llama, asked[i]) == expected[i]


def test_only_what_is_new_is_evaluated(make, asked, expected, monkeypatch):
    llama = make()
    answer(llama, asked[0])
    encoded, evaluated = [], []
    monkeypatch.setattr(llama._eyes.cache, "encode", encoded.append)
    monkeypatch.setattr(llama, "eval", lambda tokens: (evaluated.append(len(tokens)), type(llama).eval(llama, tokens)))
    follow_up = [*asked[0], assistant(expected[0]), user("Who are you?")]
    answer(llama, follow_up, max_tokens=1)
    assert not encoded
    assert evaluated[0] < len(llama.render(follow_up)) - len(llama.render(asked[0]))


def test_a_follow_up_sees_the_first_picture(make, asked, expected):
    follow_up = [*asked[0], assistant("I see."), user(QUESTION)]
    llama = make()
    answer(llama, asked[0])
    assert answer(llama, follow_up) == answer(make(), follow_up)


def test_without_a_cache_a_picture_is_encoded_once_a_chat(make, asked, expected, monkeypatch):
    llama = make(image_cache_bytes=0)
    calls = []
    encode = llama._eyes.cache.encode
    monkeypatch.setattr(llama._eyes.cache, "encode", lambda image: (calls.append(1), encode(image))[1])
    assert answer(llama, asked[0]) == expected[0]
    assert len(calls) == 1


def test_text_after_pictures_and_back(make, asked, expected):
    llama = make()
    text = [user("Who are you?")]
    said = answer(make(), text)
    for _ in range(2):
        assert answer(llama, asked[0]) == expected[0]
        assert answer(llama, text) == said


def test_states_go_to_other_processes(make, asked, expected):
    writer, reader = make(), make()
    tokens = writer.render(asked[0])
    writer.eval(tokens)
    state = pickle.loads(pickle.dumps(writer.save_state()))
    answer(reader, asked[1])
    reader.load_state(state)
    evaluated = reader.n_tokens
    assert answer(reader, asked[0]) == expected[0]
    assert evaluated == len(tokens)
    assert answer(reader, asked[1]) == expected[1]


def test_a_ram_cache(make, asked, expected):
    llama = make()
    llama.set_cache(llama_cpp.LlamaRAMCache())
    for i in (0, 1, 2, 0, 1, 2):
        assert answer(llama, asked[i]) == expected[i]


def test_speculative_decoding(make, asked, expected):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llama = make(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    for messages, said in zip(asked, expected, strict=True):
        assert answer(llama, messages) == said


def test_an_interrupted_evaluation_leaves_no_trace(make, asked, expected):
    llama = make()
    tokens = llama.render(asked[1])
    llama.eval(tokens)

    class Interrupted:
        def __init__(self, hook):
            self.hook = hook

        def __getattr__(self, name):
            return getattr(self.hook, name)

        def end(self, decoded):
            self.hook.end(decoded)
            raise KeyboardInterrupt

    hook, llama._hook = llama._hook, Interrupted(llama._hook)
    with pytest.raises(KeyboardInterrupt):
        llama.eval(llama.render(asked[0]))
    assert llama.input_ids[: llama.n_tokens].tolist() == tokens
    llama._hook = hook
    assert answer(llama, asked[0]) == expected[0]


# --- the numbers that stand for pictures ---


@pytest.fixture
def same_number(monkeypatch):
    """All pictures would have one number, if nobody looked."""
    monkeypatch.setattr(image_ids, "_first_slot", lambda digest: image_ids._N_IDS - 1)


def test_two_pictures_never_share_a_number(same_number, pictures):
    ids = ImageIds(1 << 30)
    images = [load_image(picture) for picture in pictures]
    numbers = list(map(ids.add, images))
    assert len(set(numbers)) == 3
    assert max(numbers) < 0
    assert list(map(ids.add, images)) == numbers
    assert [ids[number].image for number in numbers] == images


def test_numbers_that_mean_other_pictures_elsewhere(same_number, make, asked, expected):
    """A state whose picture's number is another picture's here."""
    writer = make()
    for messages in asked:
        writer.render(messages)
    states = []
    for messages in asked:
        writer.eval(writer.render(messages))
        states.append(writer.save_state())
        writer.reset()
    for order in ([2, 1, 0], [1, 2, 0]):
        reader = make()
        for i in order:
            reader.render(asked[i])
        for (k, state), i in itertools.product(enumerate(states), range(3)):
            reader.load_state(state)
            assert reader.input_ids[: reader.n_tokens].tolist() == reader.render(asked[k])
            assert answer(reader, asked[i]) == expected[i]


def test_old_pictures_are_forgotten_unless_in_use(pictures):
    a, b, c = map(load_image, pictures)
    ids = ImageIds(3 * a.width * a.height)
    first, second, third = ids.add(a), ids.add(b), ids.add(c)
    ids.trim({first})
    assert ids[first].image is a
    for gone in (second, third):
        with pytest.raises(BackendError, match="render the messages again"):
            ids[gone]


# --- options of a chat ---


def test_grammar(make, asked):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    assert answer(make(), asked[0], grammar=grammar) in {"yes", "no"}


def test_json(make, asked):
    schema = {"type": "object", "properties": {"shape": {"enum": ["circle", "square"]}}, "required": ["shape"]}
    said = answer(make(), asked[0], response_format={"type": "json_object", "schema": schema}, max_tokens=40)
    assert json.loads(said)["shape"] in {"circle", "square"}


@pytest.mark.parametrize("old", [False, True])
def test_a_forced_tool(make, asked, old):
    parameters = {"type": "object", "properties": {"found": {"type": "boolean"}}, "required": ["found"]}
    function = {"name": "report", "description": "Tell", "parameters": parameters}
    tools = {"tools": [{"type": "function", "function": function}]}
    tools["tool_choice"] = {"type": "function", "function": {"name": "report"}}
    if old:
        tools = {"functions": [function], "function_call": {"name": "report"}}
    completion = make().create_chat_completion(asked[0], **GREEDY, **tools)
    (call,) = completion["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "report"
    assert isinstance(json.loads(call["function"]["arguments"])["found"], bool)


def test_logprobs(make, asked):
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    completion = make(logits_all=True).create_chat_completion(asked[0], temperature=0, **options)
    content = completion["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    for token in content:
        assert token["logprob"] == max(top["logprob"] for top in token["top_logprobs"])


def test_a_completion_of_tokens(make, asked, expected):
    llama = make()
    tokens = llama.render(asked[0])
    for _ in range(2):
        assert llama.create_completion(tokens, **GREEDY)["choices"][0]["text"] == expected[0]
    assert QUESTION.encode() in llama.detokenize(tokens)
    assert b"<|image|>" in llama.detokenize(tokens, special=True)
    assert b"<|image|>" not in llama.detokenize(tokens)


def test_openai_parts(make, pictures, expected):
    parts = [{"type": "image_url", "image_url": {"url": data_uri(pictures[0])}}, {"type": "text", "text": QUESTION}]
    assert answer(make(), [{"role": "user", "content": parts}]) == expected[0]


def test_a_chat_format_is_for_text(make, asked, expected):
    assert answer(make(chat_format="chatml"), asked[0]) == expected[0]


def test_a_chat_handler_of_ones_own(make, asked):
    seen = []
    llama = make(chat_handler=lambda **options: seen.append(options["messages"]))
    llama.create_chat_completion(asked[0])
    assert seen == [asked[0]]


def test_typed_special_tokens_stay_text(make, asked, expected):
    typed = [user(asked[0][0]["content"][0]["image"], "<|image|><|eot_id|>")]
    assert sum(token < 0 for token in make().render(typed)) == 1


def test_files_are_refused_where_told(make, pictures):
    llama = make(image_limits=ImageLimits(allow_files=False))
    parts = [{"type": "image_url", "image_url": {"url": str(pictures[0])}}]
    with pytest.raises(ImageError, match="refused"):
        answer(llama, [{"role": "user", "content": parts}])
    assert answer(llama, [{"role": "user", "content": [{"type": "image_url", "image_url": data_uri(pictures[0])}]}])


def test_no_picture(make):
    with pytest.raises(ImageError, match=r"no picture file nowhere\.png"):
        answer(make(), [user("nowhere.png") | {"content": [{"type": "image", "image": "nowhere.png"}]}])


def test_which_of_several_pictures_is_none(make, pictures):
    with pytest.raises(ImageError, match=r"image 2 of 2: there is no picture file nowhere\.png"):
        make().render([user(pictures[0], "?"), assistant("Yes."), user(Path("nowhere.png"), "?")])


def test_limits_on_several_pictures(make, pictures):
    llama = make(image_limits=ImageLimits(max_images=1))
    assert llama.render([user(pictures[0], "?")])
    with pytest.raises(ImageTooLarge, match="there are 2 pictures, the limit is 1"):
        llama.render([user(*pictures[:2], "?")])


def test_pickled(make, asked, expected):
    copy = pickle.loads(pickle.dumps(make(image_cache_bytes=1 << 20)))
    try:
        assert copy._image_options["image_cache_bytes"] == 1 << 20
        assert answer(copy, asked[0]) == expected[0]
    finally:
        copy.close()
