import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvllama
from pyvllama._runtime import llama_cpp, set_fields
from pyvllama.config import MllamaConfig
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.output import write_files
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.conversion.vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED, read_vocabulary
from pyvllama.errors import CheckpointError, ConfigError

STRINGS = (
    "hello world",
    "I'M here, they'LL  go; it's John's",
    "   leading and trailing   ",
    "tabs\t\tnew\n\n\nlines \n x\r\n\r\n",
    "12345 6789 3.14 ²³ Ⅷ ٣",
    "Ünïcödé 漢字かな 한국어 العربية 🎉👩‍👩‍👧 é e\u0301 ſ İ",
    "foo_bar(x){return 1;}//c <|not special|> <|image",
    "<|image|>What?<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "\u00a0\u2003x\u200b\u2028\x85\x00",
    " ",
    "",
)


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint):
    """A copy of a tiny checkpoint, free to be damaged."""
    return shutil.copytree(tiny_checkpoint("small"), tmp_path / "checkpoint")


def read(directory):
    checkpoint = Checkpoint(directory)
    return read_vocabulary(checkpoint, MllamaConfig.from_hf_json(checkpoint.json("config.json")).text)


def edit(directory, name, change):
    """Change a JSON file of the checkpoint in place by a function."""
    path = directory / name
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return directory


def load_vocabulary(path):
    """(model, vocabulary) as stock llama.cpp reads them from a text GGUF."""
    params = llama_cpp.llama_model_default_params()
    set_fields(params, vocab_only=True)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    return model, llama_cpp.llama_model_get_vocab(model)


def tokenize(vocab, text):
    raw = text.encode()
    buffer = (llama_cpp.llama_token * (len(raw) + 8))()
    return list(buffer[: llama_cpp.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), True, True)])


def test_pocket(pocket_checkpoint):
    vocab = read(pocket_checkpoint)
    assert len(vocab.tokens) == len(vocab.token_types) == 1288
    assert (vocab.bos, vocab.eos, vocab.pad) == (1248, 1257, 1252)
    assert sorted(vocab.eog) == [1249, 1256, 1257]
    assert vocab.tokens[1280] == "<|image|>"
    assert vocab.token_types[1280] == CONTROL
    assert vocab.token_types[0] == NORMAL
    assert set(vocab.token_types[1281:]) == {UNUSED}
    assert vocab.tokens[vocab.filler_token] == "<|reserved_special_token_23|>"
    keys = vocab.to_gguf()
    assert keys["tokenizer.ggml.eot_token_id"] == ("u32", 1257)
    assert keys["tokenizer.ggml.eom_token_id"] == ("u32", 1256)
    assert "<|image|>" in keys["tokenizer.chat_template"][1]


def test_both_spellings_of_merges(checkpoint):
    def respell(tokenizer):
        tokenizer["model"]["merges"] = [
            m.split(" ") if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]
        ]

    merges = read(checkpoint).merges
    assert read(edit(checkpoint, "tokenizer.json", respell)).merges == merges
    assert all(merge.count(" ") == 1 for merge in merges)


@pytest.mark.parametrize("merge", ["a", "a b c", ["a"], ["a", "zz zz"], ["a", "never a token"]])
def test_damaged_merges(checkpoint, merge):
    with pytest.raises(CheckpointError, match="merge"):
        read(edit(checkpoint, "tokenizer.json", lambda t: t["model"]["merges"].append(merge)))


def test_added_tokens_that_are_not_special(checkpoint):
    token = {"id": 322, "content": "<picture>", "special": False}
    vocab = read(edit(checkpoint, "tokenizer.json", lambda t: t["added_tokens"].append(token)))
    assert vocab.tokens[322] == "<picture>"
    assert vocab.token_types[322] == USER_DEFINED
    assert vocab.tokens[323] == "[PAD323]"


def set_regex(tokenizer):
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_regex, r"regular expression is .*\\p\{L\}"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer is .*NFC"),
        (lambda t: t["model"].update(type="Unigram"), r"model\.type is 'Unigram'"),
        (lambda t: t["model"].update(byte_fallback=True), r"model\.byte_fallback is True"),
        (lambda t: t["model"].update(ignore_merges=False), r"model\.ignore_merges is False"),
        (lambda t: t["pre_tokenizer"].update(pretokenizers=[{"type": "Metaspace"}]), "Metaspace"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "Removed"),
        (lambda t: t.update(pre_tokenizer=None), "pre_tokenizer"),
        (lambda t: t.update(model=None), "no model"),
        (lambda t: t["model"].pop("vocab"), "vocab"),
    ],
)
def test_other_tokenizers_are_refused_by_name(checkpoint, change, message):
    with pytest.raises(CheckpointError, match=message):
        read(edit(checkpoint, "tokenizer.json", change))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({"id": 5, "content": "<|new|>", "special": True}, "id 5 is both"),
        ({"id": 328, "content": "<|new|>", "special": True}, "has the id 328, but the embedding has 328 rows"),
        ({"id": -1, "content": "<|new|>", "special": True}, "has the id -1"),
        ({"id": 325, "content": "<|eot_id|>", "special": True}, "'<|eot_id|>' has several ids"),
        ({"id": 325, "content": "[PAD326]", "special": False}, r"\[PAD326\]"),
    ],
)
def test_ids_that_do_not_fit(checkpoint, token, message):
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")):
        read(edit(checkpoint, "tokenizer.json", lambda t: t["added_tokens"].append(token)))


def test_named_token_that_does_not_exist(checkpoint):
    with pytest.raises(CheckpointError, match="bos_token '<s>' is no token"):
        read(edit(checkpoint, "tokenizer_config.json", lambda c: c.update(bos_token="<s>")))


def test_named_tokens_as_objects(checkpoint):
    bos = {"content": "<|begin_of_text|>", "special": True}
    assert (
        read(edit(checkpoint, "tokenizer_config.json", lambda c: c.update(bos_token=bos))).bos == read(checkpoint).bos
    )


def test_ids_of_config_json_where_no_file_names_tokens(checkpoint):
    expected = read(checkpoint)
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    vocab = read(checkpoint)
    assert vocab.bos == expected.bos
    assert vocab.pad == expected.pad
    assert vocab.tokens[vocab.eos] == "<|end_of_text|>"


def test_stop_token_of_the_generation_config(checkpoint):
    def change(generation):
        generation["eos_token_id"].append(5)

    vocab = read(edit(checkpoint, "generation_config.json", change))
    assert 5 in vocab.eog
    assert read(edit(checkpoint, "generation_config.json", lambda g: g.update(eos_token_id=7))).eog[0] == vocab.eos
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read(edit(checkpoint, "generation_config.json", lambda g: g.update(eos_token_id=[9999])))


def test_more_ends_than_llama_cpp_has_keys_for(checkpoint, tmp_path, tiny_checkpoint):
    """pyvllama stops at them by a key of Ollama's; that others do not is said."""
    edit(checkpoint, "generation_config.json", lambda generation: generation["eos_token_id"].append(5))
    plan = plan_conversion(checkpoint, tmp_path / "out", text_type="f32")
    end = read(checkpoint).tokens[5]
    assert f"programs other than pyvllama will not stop at {end}" in plan.notes
    write_files(plan.files)
    with pyvllama.load(plan.text[0].path, n_ctx=64, n_threads=1) as llm:
        assert 5 in llm.model.tokenizer.eog
    assert "tokenizer.ggml.eos_token_ids" not in read(tiny_checkpoint("small")).to_gguf()


def test_flags_that_llama_cpp_does_not_know(checkpoint):
    def change(tokenizer):
        for added in tokenizer["added_tokens"][:5]:
            added["lstrip"] = True

    source = Checkpoint(edit(checkpoint, "tokenizer.json", change))
    read_vocabulary(source, MllamaConfig.from_hf_json(source.json("config.json")).text)
    assert any("lstrip" in note and "and 2 more tokens" in note for note in source.notes)


def test_missing_tokenizer(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        read(checkpoint)


def test_chat_template_order(checkpoint):
    edit(checkpoint, "tokenizer_config.json", lambda c: c.update(chat_template="from config"))
    (checkpoint / "chat_template.json").unlink(missing_ok=True)
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    assert read(checkpoint).chat_templates == {"default": "from config"}
    (checkpoint / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert read(checkpoint).chat_templates == {"default": "from json"}
    (checkpoint / "chat_template.jinja").write_text("from jinja")
    assert read(checkpoint).chat_templates == {"default": "from jinja"}


def test_several_chat_templates(checkpoint):
    (checkpoint / "chat_template.json").unlink(missing_ok=True)
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    vocab = read(edit(checkpoint, "tokenizer_config.json", lambda c: c.update(chat_template=templates)))
    keys = vocab.to_gguf()
    assert keys["tokenizer.chat_template"] == ("str", "A")
    assert keys["tokenizer.chat_template.tool_use"] == ("str", "B")
    assert keys["tokenizer.chat_templates"] == ("str[]", ["tool_use"])


def test_no_chat_template(checkpoint):
    (checkpoint / "chat_template.json").unlink(missing_ok=True)
    vocab = read(edit(checkpoint, "tokenizer_config.json", lambda c: c.pop("chat_template", None)))
    assert vocab.chat_templates == {}
    assert "tokenizer.chat_template" not in vocab.to_gguf()


def test_filler_without_reserved_tokens(checkpoint):
    def rename(tokenizer):
        for token in tokenizer["added_tokens"]:
            token["content"] = token["content"].replace("reserved", "other")

    vocab = read(edit(checkpoint, "tokenizer.json", rename))
    assert vocab.filler_token == vocab.pad


def test_stock_llama_cpp_reads_the_same_tokens(pocket_checkpoint, pocket_pair):
    expected = read(pocket_checkpoint)
    model, vocab = load_vocabulary(pocket_pair.text)
    n = llama_cpp.llama_vocab_n_tokens(vocab)
    assert tuple(llama_cpp.llama_vocab_get_text(vocab, i).decode() for i in range(n)) == expected.tokens
    assert (llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_eos(vocab)) == (expected.bos, expected.eos)
    assert llama_cpp.llama_vocab_pad(vocab) == expected.pad
    assert llama_cpp.llama_vocab_get_add_bos(vocab)
    assert [i for i in range(n) if llama_cpp.llama_vocab_is_eog(vocab, i)] == sorted(expected.eog)
    control = [i for i in range(n) if llama_cpp.llama_vocab_is_control(vocab, i)]
    assert control == [i for i in range(n) if expected.token_types[i] == CONTROL]
    llama_cpp.llama_model_free(model)


@pytest.fixture(scope="module")
def both_tokenizers(pocket_checkpoint, pocket_pair):
    """(text -> ids by stock llama.cpp, text -> ids by HF's tokenizers), specials parsed, bos added."""
    tokenizers = pytest.importorskip("tokenizers")
    hf = tokenizers.Tokenizer.from_file(str(pocket_checkpoint / "tokenizer.json"))
    model, vocab = load_vocabulary(pocket_pair.text)
    yield lambda text: tokenize(vocab, text), lambda text: hf.encode(text).ids
    llama_cpp.llama_model_free(model)


@pytest.mark.reference
@pytest.mark.parametrize("text", STRINGS)
def test_tokenization_equals_hf(both_tokenizers, text):
    ours, hf = both_tokenizers
    assert ours(text) == hf(text)


@pytest.mark.reference
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(max_size=40) | st.lists(st.sampled_from([*" \n\t\r'’aAsSéſ漢1²._🎉", "'ll", "'RE", "12"])).map("".join)
)
def test_tokenization_equals_hf_on_anything(both_tokenizers, text):
    ours, hf = both_tokenizers
    assert ours(text) == hf(text)


@pytest.mark.reference
def test_tokenization_of_tiny_vocabularies(tiny_checkpoint, tiny_pair):
    tokenizers = pytest.importorskip("tokenizers")
    hf = tokenizers.Tokenizer.from_file(str(tiny_checkpoint("base") / "tokenizer.json"))
    model, vocab = load_vocabulary(tiny_pair("base").text)
    for text in STRINGS:
        assert tokenize(vocab, text) == hf.encode(text).ids
    llama_cpp.llama_model_free(model)


def nodes(value, path=()):
    """Paths of all objects and lists in a JSON value, and of some of their members."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:6]:
        yield from nodes(child, (*path, key))


@pytest.mark.parametrize("junk", [None, 7, "x", [], {}, [[]], [None], {"a": []}, True])
def test_junk_in_any_place_is_a_named_error(checkpoint, junk):
    """Whatever stands in tokenizer.json, a CheckpointError comes of it, or a vocabulary."""
    intact = json.loads((checkpoint / "tokenizer.json").read_text())
    for path in list(nodes(intact))[1:]:
        damaged = json.loads(json.dumps(intact))
        node = damaged
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = junk
        (checkpoint / "tokenizer.json").write_text(json.dumps(damaged))
        try:
            read(checkpoint).to_gguf()
        except CheckpointError as e:
            assert str(e)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("junk", [7, "x", [[]], {"a": []}, [{"name": 1}]])
def test_junk_in_the_other_files(checkpoint, name, junk):
    for key in ("bos_token", "eos_token", "chat_template", "eos_token_id"):
        before = (checkpoint / name).read_text()
        edit(checkpoint, name, lambda c, key=key: c.update({key: junk}))
        try:
            read(checkpoint).to_gguf()
        except (CheckpointError, ConfigError) as e:
            assert str(e)
        (checkpoint / name).write_text(before)
