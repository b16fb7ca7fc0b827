"""Model cards, byte for byte."""

import pytest
import yaml

from pyvllama.conversion.front_matter import front_matter
from pyvllama.conversion.provenance import provenance
from pyvllama.errors import ConfigError
from pyvllama.model_card import CardFile, model_card

FILES = [
    CardFile("Llama-3.2-11B-Vision-Instruct-Q4_K_M.gguf", 4_920_000_000, "model"),
    CardFile("Llama-3.2-11B-Vision-Instruct-Q8_0.gguf", 8_540_123_456, "model"),
    CardFile("mmproj-Llama-3.2-11B-Vision-Instruct-Q8_0.gguf", 2_345_000_000, "mmproj"),
]
FIGURES = {
    "n_tokens": 12345, "kld_mean": 0.0123456, "kld_error": 0.001, "kld_median": 0.002, "kld_p90": 0.03,
    "kld_p99": 0.21, "kld_p99_9": 0.9, "kld_max": 1.5, "same_top": 0.97, "ppl": 3.2, "ppl_reference": 3.1,
    "ppl_ratio": 1.03226, "log_p_diff": -0.03, "dp_mean": -0.001, "dp_rms": 0.04,
}  # fmt: skip
EVALUATION = {
    "model": {"text": "/home/me/a-Q4_K_M.gguf", "mmproj": "/home/me/mmproj-a-Q8_0.gguf", "text_bytes": 1},
    "reference": {"text": "a-BF16.gguf", "mmproj": "mmproj-a-BF16.gguf"},
    "all": FIGURES,
    "images": FIGURES,
    "texts": {**FIGURES, "n_tokens": 99},
    "n_image_chats": 3,
    "n_text_chats": 1,
}
README = "---\nlicense: llama3.2\nlanguage: [en, no]\ntags: [meta]\n---\n"
SOURCE = "meta-llama/Llama-3.2-11B-Vision-Instruct"


def metadata(**options):
    found = provenance("Llama-3.2-11B-Vision-Instruct", readme=README, **options)
    return {"general.name": "Llama-3.2-11B-Vision-Instruct"} | {key: value for key, (_, value) in found.keys.items()}


def test_the_whole_card():
    keys = metadata(repo_id=SOURCE, quantized_by="me")
    assert (
        model_card("me/Llama-Vision-GGUF", FILES, keys, evaluations=[EVALUATION], version="1.2.3")
        == """---
base_model: meta-llama/Llama-3.2-11B-Vision-Instruct
base_model_relation: quantized
license: llama3.2
language:
- en
- 'no'
pipeline_tag: image-text-to-text
library_name: gguf
tags:
- gguf
- mllama
- llama.cpp
- meta
quantized_by: me
---

# Llama-3.2-11B-Vision-Instruct, GGUF

[meta-llama/Llama-3.2-11B-Vision-Instruct](https://huggingface.co/meta-llama/Llama-3.2-11B-Vision-Instruct) as GGUF, \
with its eyes: a text model, and beside it an
`mmproj` with the vision part, which pyvllama plugs into an unpatched llama.cpp.

Built with Llama.

| file | type | size | what it is |
| --- | --- | ---: | --- |
| `Llama-3.2-11B-Vision-Instruct-Q4_K_M.gguf` | Q4_K_M | 4.92 GB | text model: every llama.cpp program loads it |
| `Llama-3.2-11B-Vision-Instruct-Q8_0.gguf` | Q8_0 | 8.54 GB | text model: every llama.cpp program loads it |
| `mmproj-Llama-3.2-11B-Vision-Instruct-Q8_0.gguf` | Q8_0 | 2.35 GB | \
vision tower, projector and cross-attention layers |

## Run it

```sh
pyvllama pull me/Llama-Vision-GGUF:Q4_K_M
pyvllama run me/Llama-Vision-GGUF:Q4_K_M -i photo.jpg "What is this?"
```

## Measured

By `pyvllama eval`, against `a-BF16.gguf` + `mmproj-a-BF16.gguf`: how far the probabilities of the answers' tokens are
from the reference's (Kullback-Leibler divergence in nats: mean, median, 99 % of the tokens are below), and
how often both find the same token likeliest.

| model | chats with | tokens | KL divergence | median | 99 % | same top token | perplexity ratio |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| `a-Q4_K_M.gguf` + `mmproj-a-Q8_0.gguf` | pictures | 12,345 | 0.0123 | 0.0020 | 0.2100 | 97.00% | 1.0323 |
| `a-Q4_K_M.gguf` + `mmproj-a-Q8_0.gguf` | text only | 99 | 0.0123 | 0.0020 | 0.2100 | 97.00% | 1.0323 |

## Not verified

- Pictures need pyvllama: other llama.cpp programs run the text model alone and refuse the `mmproj`.
- Accuracy on public benchmarks was not measured for these files.

Made with pyvllama 1.2.3.
"""
    )


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_not_known_is_not_said():
    card = model_card("me/x", FILES[1:], {}, version="1")
    head = head_of(card)
    assert head.keys() == {"pipeline_tag", "library_name", "tags"}
    assert "Built with Llama" not in card
    assert "pyvllama run me/x:Q8_0 " in card
    assert "Nothing: how far the answers" in card
    assert "the files do not say" in card


def test_a_parent_of_the_parent_is_no_quantization():
    """A fine-tune of unknown address, of a known base: the relation is left to the Hub."""
    head = head_of(model_card("me/x", FILES, metadata(config={"_name_or_path": "some/base"}), version="1"))
    assert head["base_model"] == "some/base"
    assert "base_model_relation" not in head
    named = head_of(model_card("me/x", FILES, metadata(), base_model="some/tune", version="1"))
    assert (named["base_model"], named["base_model_relation"]) == ("some/tune", "quantized")


def test_split_files_and_no_type():
    files = [CardFile(f"a-Q5_K_M-0000{i}-of-00002.gguf", 10, "model") for i in (1, 2)]
    assert "pyvllama pull me/x:Q5_K_M\n" in model_card("me/x", files, {}, version="1")
    assert "pyvllama pull me/x\n" in model_card("me/x", [CardFile("model.gguf", 10, "model")], {}, version="1")


def test_hostile_metadata_stays_inside_the_head():
    keys = {
        "general.license": "mit\n---\n# owned",
        "general.tags": ["a: b", "- c", "'"],
        "general.source.repo_url": "https://huggingface.co/a/b)[x](evil",
        "general.base_model.count": 3,
        "general.base_model.0.repo_url": ["no"],
        "general.quantized_by": "{x}",
    }
    card = model_card("me/x", FILES, keys, version="1")
    values, problem = front_matter(card)
    assert problem is None
    assert values["license"] == "mit\n---\n# owned"
    assert values["tags"][-3:] == ["a: b", "- c", "'"]
    assert "evil" not in card


def test_several_evaluations_of_one_reference():
    other = EVALUATION | {"model": {"text": "a-Q8_0.gguf", "mmproj": "m.gguf"}, "images": None}
    card = model_card("me/x", FILES, {}, evaluations=[EVALUATION, other], version="1")
    assert card.count("against `a-BF16.gguf` + `mmproj-a-BF16.gguf`:") == 1
    rows = [line for line in card.splitlines() if line.startswith("| `a-")]
    assert [line.split(" | ")[1] for line in rows] == ["pictures", "text only", "text only"]
    assert "/home" not in card


@pytest.mark.parametrize(
    "change",
    [
        {"images": None, "texts": None},
        {"images": []},
        {"images": {"kld_mean": 1.0}},
        {"texts": {**FIGURES, "same_top": "all"}},
        {"model": "a.gguf"},
        {"reference": {"text": 3}},
    ],
)
def test_what_is_no_evaluation(change):
    with pytest.raises(ConfigError, match="pyvllama eval --json"):
        model_card("me/x", FILES, {}, evaluations=[EVALUATION | change], version="1")
