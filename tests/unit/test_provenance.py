"""What the Hub shows beside a file: from names and model cards, however odd these are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvllama.conversion.front_matter import MAX_FRONT_MATTER_BYTES, front_matter, read_readme
from pyvllama.conversion.provenance import ModelName, file_stem, parse_model_name, provenance

CARD = """---
language:
- en
- no
license: llama3.2
license_link: LICENSE.txt
base_model: meta-llama/Llama-3.2-11B-Vision-Instruct
tags: [facebook, meta]
datasets: [Xkev/LLaVA-CoT-100k]
pipeline_tag: image-text-to-text
extra_gated_prompt: >-
  ### LLAMA 3.2 COMMUNITY LICENSE
---
# LLaVA-CoT
---
license: not this one
---
"""


# --- names ---


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Llama-3.2-11B-Vision-Instruct", ("Llama-3.2", "11B", "Vision-Instruct", None)),
        ("Llama-3.2-90B-Vision", ("Llama-3.2", "90B", "Vision", None)),
        ("Llama-Guard-3-11B-Vision", ("Llama-Guard-3", "11B", "Vision", None)),
        ("Llama-3.2V-11B-cot", ("Llama-3.2V", "11B", "cot", None)),
        ("Cephalo-Llama-3.2-11B-Vision-Instruct-128k", ("Cephalo-Llama-3.2", "11B", "Vision-Instruct-128k", None)),
        ("Llama-3.2-11B-Vision-Instruct-abliterated-v2", ("Llama-3.2", "11B", "Vision-Instruct-abliterated", "v2")),
        ("Llama3.2-11B-Vision-Instruct", ("Llama3.2", "11B", "Vision-Instruct", None)),
        ("pocket-vllama", (None, None, None, None)),
        ("", (None, None, None, None)),
    ],
)
@pytest.mark.parametrize("n_params", [0, 10_670_000_000])
def test_parts_of_a_name(name, parts, n_params):
    if "90B" in name and n_params:
        n_params = 88_600_000_000
    assert parse_model_name(name, n_params) == ModelName(*parts)
    assert file_stem(name, n_params) == name  # it conforms already, or cannot be parsed


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Llama 3.2 11b vision", "Llama-3.2-11B-vision"),
        ("Llama-3.2-11b-Vision-Instruct", "Llama-3.2-11B-Vision-Instruct"),
        ("Some-Llama-11B-v2-Vision", "Some-Llama-11B-Vision-v2"),
        ("my fine tune", "my-fine-tune"),
    ],
)
def test_names_that_do_not_conform(name, stem):
    assert file_stem(name) == stem


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_name_has_parts(name):
    assert isinstance(parse_model_name(name), ModelName)
    assert isinstance(file_stem(name, 10**10), str)


# --- keys ---


def test_keys_of_a_fine_tune():
    found = provenance("Llama-3.2V-11B-cot", readme=CARD, repo_id="Xkev/Llama-3.2V-11B-cot", quantized_by="me")
    assert found.notes == ()
    assert found.keys == {
        "general.basename": ("str", "Llama-3.2V"),
        "general.size_label": ("str", "11B"),
        "general.finetune": ("str", "cot"),
        "general.organization": ("str", "Xkev"),
        "general.license": ("str", "llama3.2"),
        "general.license.link": ("str", "https://huggingface.co/Xkev/Llama-3.2V-11B-cot/blob/main/LICENSE.txt"),
        "general.source.url": ("str", "https://huggingface.co/Xkev/Llama-3.2V-11B-cot"),
        "general.source.repo_url": ("str", "https://huggingface.co/Xkev/Llama-3.2V-11B-cot"),
        "general.quantized_by": ("str", "me"),
        "general.base_model.count": ("u32", 1),
        "general.base_model.0.name": ("str", "Llama 3.2 11B Vision Instruct"),
        "general.base_model.0.organization": ("str", "Meta Llama"),
        "general.base_model.0.repo_url": ("str", "https://huggingface.co/meta-llama/Llama-3.2-11B-Vision-Instruct"),
        "general.dataset.count": ("u32", 1),
        "general.dataset.0.name": ("str", "LLaVA CoT 100k"),
        "general.dataset.0.organization": ("str", "Xkev"),
        "general.dataset.0.repo_url": ("str", "https://huggingface.co/Xkev/LLaVA-CoT-100k"),
        "general.tags": ("str[]", ["facebook", "meta", "image-text-to-text", "mllama"]),
        "general.languages": ("str[]", ["en", "no"]),
    }


def test_nothing_known():
    assert provenance("pocket-vllama").keys == {"general.tags": ("str[]", ["image-text-to-text", "mllama"])}


def test_what_a_checkpoint_was_loaded_from_is_its_base_and_not_its_name():
    config = {"_name_or_path": "meta-llama/Llama-3.2-11B-Vision-Instruct"}
    keys = provenance("mine", config=config).keys
    assert keys["general.base_model.0.repo_url"][1].endswith("/meta-llama/Llama-3.2-11B-Vision-Instruct")
    assert not keys.keys() & {"general.basename", "general.organization", "general.source.repo_url"}
    for same in ({"name": "Llama-3.2-11B-Vision-Instruct"}, {"name": "x", "repo_id": config["_name_or_path"]}):
        assert "general.base_model.count" not in provenance(**same, config=config).keys
    for odd in ("/home/me/checkpoint", "./out", "", 3, None, ["a/b"]):
        assert "general.base_model.count" not in provenance("mine", config={"_name_or_path": odd}).keys


def test_no_local_path_gets_into_a_file():
    card = "---\nbase_model: /home/me/llama\ndatasets: [/home/me/data.json, org/good]\n---\n"
    found = provenance("mine", readme=card)
    assert "/home" not in repr(found.keys)
    assert found.keys["general.dataset.count"] == ("u32", 1)
    assert found.notes == ("README.md: base_model, datasets is not (all) of a form that can be used: left out",)


def test_keys_can_be_written_and_read(tmp_path):
    """Both of gguf-py's and our reader take them."""
    import numpy as np

    from pyvllama.conversion.writer import TensorSpec, write_gguf
    from pyvllama.gguf_file import GGUFFile

    keys = provenance("Llama-3.2V-11B-cot", readme=CARD, repo_id="Xkev/Llama-3.2V-11B-cot").keys
    all_keys = {"general.architecture": ("str", "llama"), **keys}
    spec = TensorSpec("x", (32,), "f32")
    write_gguf(tmp_path / "x.gguf", all_keys, [spec], [("x", iter([np.zeros(32, np.float32)]))])
    assert GGUFFile(tmp_path / "x.gguf").metadata == {key: value for key, (_, value) in all_keys.items()}


# --- cards that nobody can use ---


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]", "aliases"),
        ("[" * 30_000, "cannot be read"),
        ("license: [", "cannot be read"),
        ("- a\n- b", "no list of keys"),
        ("x: " + "y" * MAX_FRONT_MATTER_BYTES, "larger than 64 KiB"),
        ("a: !!python/object/apply:os.system [echo]", None),
        ("? [a, b]\n: c", "cannot be read"),
        ("a: \x00", "cannot be read"),
    ],
    ids=["alias", "bomb", "deep", "cut", "list", "huge", "python", "odd key", "nul"],
)
def test_hostile_heads(head, words):
    values, problem = front_matter(f"---\n{head}\n---\n")
    assert (words is None) == (problem is None)
    assert words is None or words in problem
    found = provenance("x", readme=f"---\n{head}\n---\n")
    assert found.keys == {"general.tags": ("str[]", ["image-text-to-text", "mllama"])}
    assert found.notes == (() if problem is None else (problem,))
    assert values in ({}, {"a": ["echo"]})


def test_heads_that_are_none():
    for readme in ("", "# A title\n---\nlicense: mit\n---\n", "---", "---\n", "\n---\nlicense: mit\n---\n"):
        assert front_matter(readme)[0] == {}
    assert "no end" in front_matter("---\nlicense: mit\n")[1]
    assert front_matter("\ufeff---\r\nlicense: mit\r\n---\r\n")[0] == {"license": "mit"}


@pytest.mark.parametrize(
    "head",
    [
        "license: {a: b}", "license: [[mit]]", "tags: 3", "tags: {a: b}", "language: [[en], {x: y}]", "author: [a, b]",
        "base_model: [{name: x}, [y]]", "datasets: {a: b}", "description: " + "x" * 5000, "license: 'a\\u0007'",
        "tags: [" + "x, " * 500 + "x]",
    ],
)  # fmt: skip
def test_values_of_wrong_types_are_left_out_with_a_note(head):
    found = provenance("x", readme=f"---\n{head}\nlicense_name: fine\n---\n")
    assert found.keys["general.license.name"] == ("str", "fine")
    for kind, value in found.keys.values():
        assert {"str": str, "u32": int, "str[]": list}[kind] is type(value)
        assert kind != "str[]" or all(isinstance(item, str) for item in value)
    if head not in ("tags: 3",):
        assert len(found.notes) <= 1


@given(st.text(alphabet="abc:[]{}-'\"#&*!|>%@ \n\t0123", max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_head_breaks_a_conversion(head):
    provenance("Llama-3.2-11B-Vision", readme=f"---\n{head}\n---\n", repo_id="a/b")


def test_reading_the_readme(tmp_path):
    assert read_readme(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff" + bytes(10**7))
    assert len(read_readme(tmp_path)) <= 2 * MAX_FRONT_MATTER_BYTES
    assert front_matter(read_readme(tmp_path))[0] == {"license": "mit"}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert read_readme(tmp_path) is None
