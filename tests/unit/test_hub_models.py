"""Which files of a repository are a model: chosen by their names, as llama.cpp's -hf chooses."""

import pytest

from pyvllama.errors import ModelNotFound
from pyvllama.file_names import FileName, is_text_name, parse_file_name, shards_of
from pyvllama.hub_models import parse_hub_name, select_mmproj, select_pair

A = "Llama-3.2-11B-Vision"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (f"{A}-Q4_K_M.gguf", FileName(A, "Q4_K_M")),
        (f"mmproj-{A}-q8_0.gguf", FileName(A, "Q8_0")),
        (f"{A}.BF16.gguf", FileName(A, "BF16")),
        (f"sub/dir/{A}-IQ2_XXS-00002-of-00010.gguf", FileName(A, "IQ2_XXS", 2, 10)),
        ("a-Q4_0-tuned-TQ1_0.gguf", FileName("a-Q4_0-tuned", "TQ1_0")),
        ("model.gguf", FileName("model", None)),
        ("Q8_0.gguf", FileName("Q8_0", None)),
        ("a-1-of-2.gguf", FileName("a-1-of-2", None)),
    ],
)
def test_file_names(name, parts):
    assert parse_file_name(name) == parts


def test_text_names():
    for name in ("a.gguf", "a-Q8_0-00001-of-00002.gguf", "deep/down/a.gguf"):
        assert is_text_name(name)
    for name in (
        "mmproj-a.gguf",
        "a-mmproj.gguf",
        "a.imatrix.gguf",
        "a-Q8_0-00002-of-00002.gguf",
        "a.bin",
        "mtp-a.gguf",
    ):
        assert not is_text_name(name)


def test_shards():
    names = [f"d/a-{i:05}-of-00003.gguf" for i in (3, 1, 2)] + ["d/b.gguf", "a-00001-of-00003.gguf"]
    assert shards_of("d/a-00001-of-00003.gguf", names) == tuple(sorted(names[:3]))
    assert shards_of("d/b.gguf", names) == ("d/b.gguf",)
    assert shards_of("a-00001-of-00003.gguf", names) == ("a-00001-of-00003.gguf",)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("user/repo", ("user/repo", None)),
        ("user/repo-1.5_x:Q4_K_M", ("user/repo-1.5_x", "Q4_K_M")),
        ("user/repo:", None),
        ("user/repo:a b", None),
        ("user/repo:a/b", None),
        ("repo:Q4_K_M", None),
        ("C:\\models", None),
        ("a/b/c", None),
        ("../b", None),
        ("", None),
    ],
)
def test_hub_names(name, parts):
    assert parse_hub_name(name) == parts


@pytest.mark.parametrize(
    ("texts", "quant", "chosen"),
    [
        (["a-Q8_0", "a-Q4_K_M", "a-F16"], None, "a-Q4_K_M"),
        (["a-Q8_0", "a-F16", "a-IQ4_XS"], None, "a-Q8_0"),
        (["a-Q6_K", "a-F16"], None, "a-F16"),  # the first
        (["a-Q4_K_M", "a-Q8_0"], "q8_0", "a-Q8_0"),
        (["a-q5_k_s", "a-Q5_K_M"], "Q5_K_S", "a-q5_k_s"),
        (["a-IQ4_NL", "a-Q4_0"], "Q4_0", "a-Q4_0"),
        (["a-BF16", "a-F16"], "F16", "a-F16"),  # not the end of BF16
        (["a-Q4_K_M", "a-Q4_K_S"], "Q4_K_S", "a-Q4_K_S"),
        (["a.Q4_K_M"], "Q4_K_M", "a.Q4_K_M"),
    ],
)
def test_which_text(texts, quant, chosen):
    files = [f"{t}.gguf" for t in texts] + ["mmproj-a-Q8_0.gguf", "README.md", "a.imatrix.gguf"]
    assert select_pair(files, quant, where="x").text == (f"{chosen}.gguf",)


@pytest.mark.parametrize(
    ("mmprojs", "wanted", "chosen"),
    [
        (["F16", "Q8_0", "BF16"], None, "Q8_0"),
        (["F32", "BF16", "F16"], None, "F16"),
        (["F32", "BF16"], None, "BF16"),
        (["Q4_K"], None, "Q4_K"),
        (["F16", "BF16"], "bf16", "BF16"),
        (["F16", "Q8_0"], "f16", "F16"),
    ],
)
def test_which_mmproj(mmprojs, wanted, chosen):
    files = ["a-Q4_K_M.gguf", *(f"mmproj-a-{t}.gguf" for t in mmprojs)]
    assert select_pair(files, None, wanted, where="x").mmproj == f"mmproj-a-{chosen}.gguf"
    assert select_mmproj(files, wanted, where="x") == f"mmproj-a-{chosen}.gguf"


def test_the_nearest_mmproj_of_the_same_name():
    files = ["mmproj-a-F16.gguf", "mmproj-b-Q8_0.gguf", "q4/a-Q4_K_M.gguf", "q8/a-Q8_0.gguf", "q8/mmproj-a-F32.gguf"]
    assert select_pair(files, "q4_k_m", where="x").mmproj == "mmproj-a-F16.gguf"
    assert select_pair(files, "q8_0", where="x").mmproj == "q8/mmproj-a-F32.gguf"


def test_split_text():
    parts = [f"d/a-Q4_K_M-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert select_pair([*parts, "mmproj-a-F16.gguf"], where="x").text == tuple(parts)
    with pytest.raises(ModelNotFound, match="only 2 of 3 files"):
        select_pair([parts[0], parts[2], "mmproj-a-F16.gguf"], where="x")


@pytest.mark.parametrize(
    ("files", "quant", "mmproj_type", "words"),
    [
        ([], None, None, "no GGUF file of a text model in it. It holds no GGUF files at all; see https://"),
        (["model.safetensors"], None, None, "but a checkpoint's weights: pyvllama convert user/repo -o DIR"),
        (["mmproj-a-F16.gguf"], None, None, "no GGUF file of a text model in it. It has mmproj-a-F16.gguf"),
        (["a-Q8_0.gguf"], None, None, "no mmproj-*.gguf in it"),
        (["a-Q8_0.gguf", "a-mmproj-F16.gguf"], None, None, "It has a-Q8_0.gguf, a-mmproj-F16.gguf"),
        (["a-Q8_0.gguf", "mmproj-a-F16.gguf"], "q4_k_m", None, "no text file of type q4_k_m in it. It has a-Q8_0.gguf"),
        (["a-Q8_0.gguf", "mmproj-a-F16.gguf"], "Q8", None, "no text file of type Q8"),
        (["a-Q8_0.gguf", "mmproj-a-F16.gguf"], None, "q8_0", "no mmproj of type q8_0 in it. It has mmproj-a-F16.gguf"),
        (
            ["a-Q8_0.gguf", "b-Q8_0.gguf", "mmproj-a-F16.gguf"],
            None,
            None,
            "several files of type Q8_0 in it. It has a-",
        ),
        (["c-Q8_0.gguf", "mmproj-a-F16.gguf", "mmproj-b-F16.gguf"], None, None, "several files of type F16"),
        (["q/a-Q8_0.gguf", "other/mmproj-a-F16.gguf"], None, None, "no mmproj-*.gguf in it"),
    ],
)
def test_refusals_list_what_there_is(files, quant, mmproj_type, words):
    with pytest.raises(ModelNotFound) as caught:
        select_pair(files, quant, mmproj_type, where="user/repo")
    assert str(caught.value).startswith("user/repo: ")
    assert words in str(caught.value)


def test_a_long_list_is_cut():
    with pytest.raises(ModelNotFound, match="and 60 more") as caught:
        select_pair([f"a{i}-Q8_0.gguf" for i in range(100)], "f16", where="x")
    assert len(str(caught.value)) < 2000
