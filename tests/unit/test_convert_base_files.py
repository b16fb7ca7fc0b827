"""What a checkpoint lacks, taken from its base model."""

import json
import shutil
from pathlib import Path

import hub_server
import lora_files
import pytest

from pyvllama.conversion import convert
from pyvllama.conversion.base_files import find_base
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound

FILES = (
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
    """A checkpoint that a test may take files from; called `tiny-small` as the one it is a copy of."""
    return Path(shutil.copytree(tiny_checkpoint("small"), tmp_path / "tiny-small"))


def remove(directory, *names):
    for name in names:
        (directory / name).unlink()
    return directory


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_factory_writes_these_files(model):
    assert sorted(p.name for p in model.iterdir()) == sorted([*FILES, "model.safetensors"])


def test_weights_alone(model, tiny_checkpoint, tiny_pair, tmp_path):
    """Merged weights and nothing else: with the base, the same files to the byte."""
    remove(model, *FILES)
    base = tiny_checkpoint("small")
    pair = convert(model, tmp_path / "out", base=base, text_type="f32", mmproj_type="f32")
    assert pair.text.read_bytes() == tiny_pair("small").text.read_bytes()
    assert pair.mmproj.read_bytes() == tiny_pair("small").mmproj.read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_taken_and_noted(name, model, tiny_checkpoint, tmp_path):
    base = tiny_checkpoint("small")
    whole = plan_conversion(model, tmp_path / "out", base=base)
    assert whole.notes == ()
    remove(model, name)
    plan = plan_conversion(model, tmp_path / "out", base=base)
    elsewhere = ("special_tokens_map.json", "tokenizer_config.json", "chat_template.json")  # each says what others say
    assert plan.notes == (() if name in elsewhere else (f"{name} is taken from {base}",))
    assert plan.text[0].metadata == whole.text[0].metadata
    assert plan.mmproj.metadata == whole.mmproj.metadata


def test_what_the_checkpoint_says_itself_counts(model, tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        edit(base / name, lambda value: value.clear())
    (base / "chat_template.jinja").write_text("{{- 'the base' }}")
    edit(model / "generation_config.json", lambda value: value.update(temperature=0.25))
    plan = plan_conversion(model, tmp_path / "out", base=base)
    assert plan.notes == ()
    assert plan.text[0].metadata["general.sampling.temp"] == ("f32", 0.25)
    # chat_template.jinja goes before all others, but not the base's before the checkpoint's own
    assert plan.text[0].metadata["tokenizer.chat_template"] != ("str", "{{- 'the base' }}")


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_template_alone(where, model, tiny_checkpoint, tmp_path):
    """Of a base's tokenizer_config.json nothing but the template is taken where the checkpoint has its own."""
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    for directory in (model, base):
        remove(directory, "chat_template.json")
        edit(directory / "tokenizer_config.json", lambda value: value.pop("chat_template"))
    template = "{{- bos_token }}{{- messages[0].content }}"
    if where == "tokenizer_config.json":
        edit(base / where, lambda value: value.update(chat_template=template, eos_token="<|end_of_text|>"))
    else:
        (base / where).write_text(template if where.endswith("jinja") else json.dumps({"chat_template": template}))
    plan = plan_conversion(model, tmp_path / "out", base=base)
    assert plan.notes == (f"the chat template ({where}) is taken from {base}",)
    metadata = plan.text[0].metadata
    assert metadata["tokenizer.chat_template"] == ("str", template)
    assert metadata["tokenizer.ggml.tokens"][1][metadata["tokenizer.ggml.eos_token_id"][1]] == "<|eot_id|>"


def test_special_tokens_stay_with_their_tokenizer_config(model, tiny_checkpoint, tmp_path):
    """The base's special_tokens_map.json does not fill in what the checkpoint's tokenizer_config.json leaves out."""
    remove(model, "special_tokens_map.json")
    edit(model / "tokenizer_config.json", lambda value: value.pop("pad_token"))
    checkpoint = Checkpoint(model, find_base(tiny_checkpoint("small")))
    assert checkpoint.notes == []
    assert checkpoint.optional_json("special_tokens_map.json") is None


def test_the_image_processor_in_the_form_of_transformers_5(model, tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    processor = json.loads((base / "preprocessor_config.json").read_text())
    remove(base, "preprocessor_config.json")
    (base / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    whole = plan_conversion(model, tmp_path / "out")
    remove(model, "preprocessor_config.json")
    (model / "processor_config.json").write_text("{}")  # of an older version: nothing of images in it
    plan = plan_conversion(model, tmp_path / "out", base=base)
    assert plan.notes == (f"the image processor (processor_config.json) is taken from {base}",)
    assert plan.mmproj.metadata == whole.mmproj.metadata


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_without_a_base_the_message_names_it(name, model, tmp_path):
    with pytest.raises((CheckpointError, ModelNotFound), match=rf"{name}.*\(--base\)"):
        plan_conversion(remove(model, name), tmp_path / "out")


def test_a_base_that_lacks_it_too(model, tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    remove(model, "tokenizer.json")
    remove(base, "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json, and .*base has none to take its place"):
        plan_conversion(model, tmp_path / "out", base=base)
    remove(model, "config.json")
    remove(base, "config.json")
    with pytest.raises(ModelNotFound, match=r"no config\.json: nor does .*base"):
        plan_conversion(model, tmp_path / "out", base=base)


def test_a_base_of_another_size_is_found_out(model, tiny_checkpoint, tmp_path):
    remove(model, "config.json")
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    edit(base / "config.json", lambda value: value["text_config"].update(intermediate_size=200))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: shape \[192, 128\], but config\.json asks for \[200"):
        plan_conversion(model, tmp_path / "out", base=base)


def test_damaged_files_of_the_base_are_named(model, tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    (base / "tokenizer.json").write_text("{")
    remove(model, "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"base/tokenizer\.json holds no valid JSON"):
        plan_conversion(model, tmp_path / "out", base=base)


def test_what_is_no_base(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"base = .*nowhere: no such directory"):
        plan_conversion(model, tmp_path / "out", base=tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"holds none of the files.*tokenizer\.json"):
        plan_conversion(model, tmp_path / "out", base=tmp_path / "empty")


def test_metas_checkpoints_need_none(tiny_checkpoint, tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ConfigError, match="Meta's checkpoint"):
        plan_conversion(tmp_path, tmp_path / "out", base=tiny_checkpoint("small"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of our own, which the client in this process asks."""
    import huggingface_hub
    from huggingface_hub import constants

    with hub_server.serve() as running:
        download = huggingface_hub.snapshot_download
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            huggingface_hub,
            "snapshot_download",
            lambda *a, **k: download(*a, **k, cache_dir=tmp_path / "hf", endpoint=running.url, token=False),
        )
        yield running


def test_a_base_on_the_hub_gives_its_small_files_alone(hub, model, tiny_checkpoint, tiny_pair, tmp_path):
    hub.repositories["some-org/base"] = tiny_checkpoint("small")
    remove(model, "config.json", "tokenizer.json")
    plan = plan_conversion(model, tmp_path / "out", base="some-org/base")
    assert plan.notes == (
        "config.json is taken from some-org/base",
        "tokenizer.json is taken from some-org/base",
    )
    assert not [r for r in hub.requests if "model.safetensors" in r]


def test_weights_on_the_hub_and_nothing_else(hub, model, tiny_checkpoint, tmp_path):
    hub.repositories["some-org/weights"] = remove(model, *FILES)
    with pytest.raises(ModelNotFound, match=r"neither config\.json nor"):
        plan_conversion("some-org/weights", tmp_path / "out")
    plan = plan_conversion("some-org/weights", tmp_path / "out", base=tiny_checkpoint("small"))
    assert len(plan.notes) == len(FILES)


def test_an_adapter_on_the_hub(hub, tiny_checkpoint, tmp_path):
    from pyvllama.conversion.lora_gguf import convert_lora
    from pyvllama.conversion.source import is_adapter_source

    module = lora_files.SELF.format(0) + "q_proj"
    hub.repositories["some-org/base"] = tiny_checkpoint("small")
    hub.repositories["some-org/adapter"] = lora_files.write_adapter(
        tmp_path / "repo", [module], base_model_name_or_path="some-org/base"
    )
    assert is_adapter_source("some-org/adapter")
    assert not is_adapter_source("some-org/base")
    path = convert_lora("some-org/adapter", tmp_path / "out")
    assert path.name == "adapter-F16-LoRA.gguf"
    plan = plan_conversion("some-org/base", tmp_path / "out", lora=["some-org/adapter"])
    assert plan.notes == ("the adapter adapter is merged into 1 weight",)
