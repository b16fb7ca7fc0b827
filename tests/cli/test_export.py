"""`pyvllama export`: files, notes on stderr, and what it refuses."""

import json

from exports import assert_same_tensors
from refusals import assert_misused, assert_refused

from pyvllama.conversion.checkpoint import Checkpoint


def test_a_directory_is_a_pair(cli, tiny_pair, tiny_checkpoint, tmp_path):
    source = tiny_pair("two_tiles").text.parent
    result = cli("export", source, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [
        "chat_template.json", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert sorted(line.split("  ")[0] for line in result.stdout.splitlines()) == [
        str(tmp_path / "out" / name) for name in names
    ]
    assert_same_tensors(tmp_path / "out", tiny_checkpoint("two_tiles"))
    assert_refused(cli("export", source, "-o", tmp_path / "out"), "exists? already", "overwriting")
    assert cli("export", source, "-o", tmp_path / "out", "--overwrite").exit_code == 0


def test_quantized_files_are_asked_for(cli, pocket_pairs, tmp_path):
    pair = pocket_pairs("q8_0", "q8_0")
    arguments = ("export", pair.text, "--mmproj", pair.mmproj, "-o", tmp_path / "out")
    assert_refused(cli(*arguments), "quantized, and what that has lost does not come back", "--dequantize")
    assert not (tmp_path / "out").exists()
    result = cli(*arguments, "--dequantize")
    assert result.exit_code == 0, result.output
    assert [line.split(" is ")[0] for line in result.stderr.splitlines()] == [pair.text.name, pair.mmproj.name]
    assert "written as BF16" in result.stderr
    assert {t.type for t in Checkpoint(tmp_path / "out").tensors.values()} == {"bf16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_refusals(cli, tmp_path):
    assert_refused(cli("export", tmp_path / "none.gguf", "-o", tmp_path / "out"), "no such file")
    assert_misused(cli("export", tmp_path), "Missing option")
    assert_misused(cli("export", "-o", tmp_path), "Missing argument 'MODEL'")
