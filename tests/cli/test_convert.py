"""`pyvllama convert`: what it makes and prints, and what it refuses."""

import json
import shutil
from pathlib import Path

import lora_files
import pytest
from refusals import assert_misused, assert_refused
from tiny_configs import CONFIGS

from pyvllama.conversion import convert as convert_checkpoint
from pyvllama.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint("two_tiles")


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "my-model"))


def test_two_files_and_their_sizes(cli, checkpoint, tmp_path):
    result = cli("convert", checkpoint, "-o", tmp_path / "new" / "models", "-q", "q8_0", "--mmproj-type", "bf16")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    paths = [Path(line.split("  ")[0]) for line in result.stdout.splitlines()]
    assert [path.name for path in paths] == ["tiny-two_tiles-Q8_0.gguf", "mmproj-tiny-two_tiles-BF16.gguf"]
    assert sorted(paths) == sorted((tmp_path / "new" / "models").iterdir())
    for path, line in zip(paths, result.stdout.splitlines(), strict=True):
        assert float(line.split("  ")[1].split()[0]) == pytest.approx(path.stat().st_size / 1024, abs=0.05)


def test_what_was_converted_answers(cli, checkpoint, tmp_path):
    cli("convert", checkpoint, "-o", tmp_path, "-q", "f16")
    result = cli("run", tmp_path, "--json", "--max-tokens", "2", "--temperature", "0", "Hello")
    assert json.loads(result.stdout)["usage"]["completion_tokens"] <= 2


def test_options(cli, checkpoint, tmp_path):
    result = cli(
        "convert", checkpoint, "-o", tmp_path, "-q", "F32", "--mmproj-type", "F16", "--cross-type", "bf16",
        "--name", "Other-Name", "-t", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = GGUFFile(tmp_path / "Other-Name-F32.gguf")
    mmproj = GGUFFile(tmp_path / "mmproj-Other-Name-F16.gguf")
    assert text.tensors["blk.0.attn_q.weight"].type == "f32"
    assert mmproj.tensors["v.blk.0.attn_q.weight"].type == "f16"
    assert mmproj.tensors["xattn.blk.3.attn_q.weight"].type == "bf16"


def test_existing_files_are_kept_unless_told_otherwise(cli, checkpoint, tmp_path):
    command = ["convert", checkpoint, "-o", tmp_path, "-q", "f16", "--mmproj-type", "f16"]
    cli(*command)
    text, mmproj = tmp_path / "tiny-two_tiles-F16.gguf", tmp_path / "mmproj-tiny-two_tiles-F16.gguf"
    want = text.read_bytes()
    text.write_bytes(b"mine")
    assert_refused(cli(*command), "exist", "overwrit")
    assert text.read_bytes() == b"mine"
    mmproj.unlink()
    assert_refused(cli(*command), "exist")
    assert not mmproj.exists()
    assert cli(*command, "--overwrite").exit_code == 0
    assert text.read_bytes() == want
    assert mmproj.exists()


# --- refusals; each leaves nothing behind ---


def refused(cli, tmp_path, source, *options, words):
    out = tmp_path / "out"
    line = assert_refused(cli("convert", source, "-o", out, *options), *words)
    assert not list(out.glob("*")), "something was left behind"
    return line


def test_a_source_that_is_not_there(cli, tmp_path):
    refused(cli, tmp_path, tmp_path / "gone", words=["gone"])


def test_a_directory_without_a_checkpoint(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(cli, tmp_path, tmp_path / "empty", words=["empty", r"config\.json"])


def test_a_gguf_file_is_no_checkpoint(cli, tmp_path, pair):
    refused(cli, tmp_path, pair.text, words=[pair.text.name])


@pytest.mark.parametrize("option", ["-q", "--mmproj-type", "--cross-type"])
def test_an_unknown_type_and_the_known_ones(cli, tmp_path, checkpoint, option):
    refused(cli, tmp_path, checkpoint, option, "q9_9", words=["q9_9", "(?i)q8_0", "(?i)bf16"])


@pytest.mark.parametrize("name", ["a/b", "../a", "a\\b"])
def test_a_name_that_leads_elsewhere(cli, tmp_path, checkpoint, name):
    refused(cli, tmp_path, checkpoint, "--name", name, words=["name"])
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def test_damaged_parts_are_named(cli, tmp_path, copy):
    (copy / "tokenizer.json").write_text("{")
    refused(cli, tmp_path, copy, words=[r"tokenizer\.json"])


def test_an_unsupported_value_is_named_with_its_key(cli, tmp_path, copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu_new"
    (copy / "config.json").write_text(json.dumps(config))
    refused(cli, tmp_path, copy, words=["hidden_act", "gelu_new", "silu"])


def test_another_model_altogether(cli, tmp_path, copy):
    (copy / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    refused(cli, tmp_path, copy, words=["gpt2|mllama"])


def test_an_output_that_is_a_file(cli, tmp_path, checkpoint):
    (tmp_path / "out").write_text("mine")
    assert_misused(cli("convert", checkpoint, "-o", tmp_path / "out"), "file")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_below_a_file(cli, tmp_path, checkpoint):
    (tmp_path / "file").write_text("mine")
    assert_refused(cli("convert", checkpoint, "-o", tmp_path / "file" / "out"), "file")


def test_misused(cli, checkpoint, tmp_path):
    assert_misused(cli("convert"), "SRC")
    assert_misused(cli("convert", checkpoint), "--output")
    assert_misused(cli("convert", checkpoint, "-o", tmp_path, "-t", "0"), "--threads")
    assert_misused(cli("convert", checkpoint, "-o", tmp_path, "-t", "100000"), "--threads")


# --- plans, shards, eyes alone ---


def test_a_dry_run_says_everything_and_writes_nothing(cli, checkpoint, tmp_path):
    out = tmp_path / "deep" / "out"
    result = cli("convert", checkpoint, "-o", out, "-q", "q4_k_m", "--tensor-type", "attn_v=q8_0", "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "deep").exists()
    lines = result.stdout.splitlines()
    pair = convert_checkpoint(checkpoint, tmp_path / "real", text_type="q4_k_m", tensor_types=["attn_v=q8_0"])
    for path in (pair.text, pair.mmproj):
        (head,) = (i for i, line in enumerate(lines) if line.startswith(f"{out / path.name}  "))
        tensors = GGUFFile(path).tensors
        for line, (name, t) in zip(lines[head + 1 :], tensors.items(), strict=False):
            words = line.split()
            assert words[0] == name
            assert t.type in words
            assert "model.safetensors:" in line or "config.json" in line
    assert lines[-2].startswith("disk ")
    assert "free" in lines[-2]
    assert lines[-1].startswith("memory ")


def test_a_dry_run_finds_what_is_wrong(cli, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_global_layers"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    result = cli("convert", copy, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 2
    assert "missing: vision_model.global_transformer" in result.stderr
    assert not (tmp_path / "out").exists()


def test_shards(cli, checkpoint, tmp_path):
    result = cli("convert", checkpoint, "-o", tmp_path, "-q", "q8_0", "--split-max-size", "100K")
    assert result.exit_code == 0, result.output
    names = [Path(line.split("  ")[0]).name for line in result.stdout.splitlines()]
    assert len(names) > 2
    assert names[0] == f"tiny-two_tiles-Q8_0-00001-of-{len(names) - 1:05d}.gguf"
    assert names[-1] == "mmproj-tiny-two_tiles-Q8_0.gguf"
    assert_refused(cli("convert", checkpoint, "-o", tmp_path, "--split-max-size", "many"), "'many' is no size")


def test_only_the_eyes(cli, checkpoint, tmp_path):
    """The mmproj alone equals that of the pair, and works with the text model of another conversion."""
    result = cli("convert", checkpoint, "-o", tmp_path / "eyes", "--mmproj-only")
    assert result.exit_code == 0, result.output
    (mmproj,) = (tmp_path / "eyes").iterdir()
    pair = convert_checkpoint(checkpoint, tmp_path / "whole")
    assert mmproj.read_bytes() == pair.mmproj.read_bytes()
    result = cli("run", pair.text, "--mmproj", mmproj, "--json", "--max-tokens", "2", "--temperature", "0", "Hello")
    assert result.exit_code == 0, result.output

    refused = cli("convert", checkpoint, "-o", tmp_path / "eyes", "--mmproj-only", "--split-max-size", "1G")
    assert_refused(refused, "the mmproj alone is to be written")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Of the text model's own layers alone."""
    modules = [lora_files.SELF.format(0) + "q_proj"]
    return lora_files.write_adapter(
        tmp_path_factory.mktemp("lora") / "my-adapter", modules, config=CONFIGS["two_tiles"]
    )


def test_base_and_lora(cli, copy, checkpoint, adapter, tmp_path):
    (copy / "tokenizer.json").unlink()
    arguments = ("convert", copy, "-o", tmp_path / "out", "-q", "f32")
    assert_refused(cli(*arguments), r"lacks tokenizer\.json.*--base")
    result = cli(*arguments, "--base", checkpoint, "--lora", adapter)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        f"tokenizer.json is taken from {checkpoint}",
        "the adapter my-adapter is merged into 1 weight",
    ]
    changed = GGUFFile(tmp_path / "out" / "my-model-F32.gguf").f32("blk.0.attn_q.weight")
    cli("convert", checkpoint, "-o", tmp_path / "out", "-q", "f32", "--name", "plain")
    plain = GGUFFile(tmp_path / "out" / "plain-F32.gguf").f32("blk.0.attn_q.weight")
    assert abs(changed - plain).max() > 0.1


def test_an_adapter_alone(cli, checkpoint, adapter, tiny_pair, tmp_path):
    result = cli("convert", adapter, "-o", tmp_path, "--base", checkpoint)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'my-adapter-F16-LoRA.gguf'}  ")
    assert GGUFFile(tmp_path / "my-adapter-F16-LoRA.gguf").metadata["adapter.type"] == "lora"
    result = cli("convert", adapter, "-o", tmp_path, "--base", checkpoint, "-q", "bf16", "--name", "other")
    assert {t.type for t in GGUFFile(tmp_path / "other-BF16-LoRA.gguf").tensors.values()} == {"bf16"}
    assert_refused(cli("convert", adapter, "-o", tmp_path), r"config\.json.*--base")
    planned = cli("convert", adapter, "-o", tmp_path / "later", "--base", checkpoint, "--dry-run").stdout
    assert "blk.0.attn_q.weight.lora_a" in planned and "memory" in planned and not (tmp_path / "later").exists()
    assert_refused(
        cli("run", tmp_path / "my-adapter-F16-LoRA.gguf", "--mmproj", tiny_pair("two_tiles").mmproj, "x"), "LoRA"
    )
    assert_refused(cli("quantize", tmp_path / "my-adapter-F16-LoRA.gguf", "-o", tmp_path), "is a LoRA adapter")
    assert_misused(
        cli("convert", adapter, "-o", tmp_path, "--mmproj-type", "f16", "--lora", adapter),
        r"is a LoRA adapter: --mmproj-type, --lora cannot be used with it",
    )
