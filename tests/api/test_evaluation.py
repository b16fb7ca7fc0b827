"""A pair against a reference pair, over chats: what is compared, and what the figures say."""

import errno
import json
import shutil
import tempfile

import numpy as np
import pytest
from chats import write_chats, write_text_chats
from file_size_limit import file_size_limit
from talk import user

import pyvllama
from pyvllama.divergence import compare, summarize
from pyvllama.errors import Cancelled, ConfigError, FormatError, PromptError
from pyvllama.evaluation import evaluate
from pyvllama.gguf_file import GGUFFile

OPTIONS = {"n_ctx": 512, "n_threads": 1}


@pytest.fixture(scope="module")
def reference(pocket_pairs):
    return pocket_pairs("f32", "f32")


@pytest.fixture(scope="module")
def small(pocket_pairs):
    return pocket_pairs("q4_k_m", "q8_0")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("chats")
    return [write_chats(folder / "a.jsonl", samples[:2]), write_text_chats(folder / "b.jsonl", 3)]


def test_a_model_does_not_differ_from_itself(reference, datasets):
    result = evaluate(reference.text, reference.text, datasets, **OPTIONS)
    for d in (result.all, result.images, result.texts):
        assert d.kld_max == 0.0 and d.same_top == 1.0 and d.ppl_ratio == 1.0 and d.dp_rms == 0.0
    assert result.n_text_chats == 3 and result.n_image_chats == len(datasets[0].read_text().splitlines())
    assert result.all.n_tokens == result.images.n_tokens + result.texts.n_tokens
    assert result.model == result.reference


def test_the_figures_are_those_of_the_models_own_logits(reference, small, samples, tmp_path):
    """Against llm.logits of the whole chat, with the answer's rows picked here."""
    qa = samples[0]["qa"][0]
    path = write_chats(tmp_path / "one.jsonl", [samples[0] | {"qa": [qa]}])
    messages = [user(samples[0]["path"], qa["question"]), {"role": "assistant", "content": qa["truth"]}]
    logits = []
    for pair in (reference, small):
        with pyvllama.load(pair.text, pair.mmproj, **OPTIONS) as llm:
            prompt = llm.logits(messages[:1]).shape[0]
            answer = [*llm.model.tokenizer.tokenize(qa["truth"]), llm.model.tokenizer.eos]
            logits.append(llm.logits(messages)[prompt - 1 : prompt - 1 + len(answer)])
    want = summarize(compare(*logits, answer))
    result = evaluate(small.text, reference.text, [path], **OPTIONS)
    assert result.texts is None and result.images == result.all and result.all.n_tokens == len(answer)
    for key, value in want.as_dict().items():
        assert result.all.as_dict()[key] == pytest.approx(value, rel=1e-3, abs=1e-9), key
    assert result.all.kld_mean > 0


def test_open_chats_get_the_references_answer(reference, small, samples, tmp_path):
    """The model answers these as the dataset does, so that both files compare the same tokens."""
    some = [s | {"qa": [q for q in s["qa"] if q["correct"]]} for s in samples[:2]]
    closed = evaluate(small.text, reference.text, [write_chats(tmp_path / "a.jsonl", some)], **OPTIONS)
    open_ = evaluate(small.text, reference.text, [write_chats(tmp_path / "b.jsonl", some, answers=False)], **OPTIONS)
    assert open_.all == closed.all
    short = evaluate(
        small.text, reference.text, [write_chats(tmp_path / "b.jsonl", some, answers=False)], max_tokens=1, **OPTIONS
    )
    assert short.all.n_tokens == short.n_image_chats


def test_plain_text_counts_the_second_half_of_each_chunk(reference, small, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("The ring is yellow and the star is blue. " * 10)
    result = evaluate(small.text, reference.text, [path], chunk_tokens=32, **OPTIONS)
    assert result.images is None and result.all == result.texts and result.all.n_tokens > 15
    assert result.all.ppl > 1.5


def test_sizes_and_json(reference, small, datasets):
    result = evaluate(small.text, reference.text, datasets[1:], **OPTIONS)
    assert result.model.text_bytes == sum(t.n_bytes for t in GGUFFile(small.text).tensors.values())
    assert result.model.n_bytes < result.reference.n_bytes / 3
    d = json.loads(json.dumps(result.as_dict()))
    assert d["all"]["kld_mean"] == result.all.kld_mean and d["images"] is None
    assert d["model"]["mmproj"] == str(small.mmproj)


def test_another_vocabulary_is_refused(tiny_pair, reference, datasets):
    with pytest.raises(FormatError, match="different vocabularies"):
        evaluate(tiny_pair("small").text, reference.text, datasets[1:], **OPTIONS)


def test_what_is_wrong_is_said_first(reference, datasets, tmp_path, monkeypatch):
    pair = (reference.text, reference.text)
    with pytest.raises(ConfigError, match="chunk_tokens"):
        evaluate(*pair, datasets, chunk_tokens=4, **OPTIONS)
    with pytest.raises(ConfigError, match="max_tokens"):
        evaluate(*pair, datasets, max_tokens=0, **OPTIONS)
    with pytest.raises(ConfigError, match="cannot be written to"):
        evaluate(*pair, datasets, work_dir=tmp_path / "gone", **OPTIONS)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PromptError, match="the texts are too short"):
        evaluate(*pair, [tmp_path / "a.txt"], **OPTIONS)
    with pytest.raises(Cancelled):
        evaluate(*pair, datasets, progress=lambda fraction, what: fraction < 0.5, **OPTIONS)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"take up to 0\.\d GB \(\d+ tokens\), but .* has 0\.0 GB free"):
        evaluate(*pair, datasets, **OPTIONS)


def test_no_room_for_the_logits(reference, datasets, tmp_path, monkeypatch):
    pair = (reference.text, reference.text)
    for limit in (1000, 100_000):
        with pytest.raises(ConfigError, match=r"logits cannot be kept: .*work_dir"), file_size_limit(limit):
            evaluate(*pair, datasets, work_dir=tmp_path, **OPTIONS)
        assert not list(tmp_path.iterdir())

    def full():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    with pytest.raises(ConfigError, match=r"kept: No usable temporary directory .*; name a work_dir"):
        evaluate(*pair, datasets, **OPTIONS)


def test_the_rows_that_are_asked_for(reference, samples):
    """logits_of gives what logits gives, of these rows, however the batches fall."""
    from pyvllama.session import Session

    with pyvllama.load(reference.text, reference.mmproj, n_batch=16, **OPTIONS) as llm:
        messages = [user(samples[0]["path"], "Describe the image. " * 4)]
        whole = llm.logits(messages)
        session: Session = llm._session
        cells = list(session._cells)
        rows = {3, 15, 16, 17, len(cells) - 1}
        parts = list(session.logits_of(cells, rows))
        assert sum(map(len, parts)) == 5 and len(parts) == -(-len(cells) // 16)
        got = np.concatenate(parts)[:, : whole.shape[1]]
        np.testing.assert_allclose(got, whole[sorted(rows)], rtol=0, atol=1e-4 * np.abs(whole).max())
