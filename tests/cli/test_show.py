"""`pyvllama show`: numbers equal to the checkpoint's, without loading anything."""

import json
import shutil

import pytest
from refusals import assert_misused, assert_refused
from tiny_configs import CONFIGS

from pyvllama.cli import fit
from pyvllama.memory_need import MemorySettings, memory_need, read_sizes
from pyvllama.types import Pair

CONFIG = CONFIGS["two_tiles"]


def shown(cli, *arguments):
    result = cli("show", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def test_json_has_the_checkpoints_numbers(cli, pair):
    got = shown(cli, pair.text)
    text, mmproj = got["text"], got["mmproj"]
    assert (text["file"], mmproj["file"]) == (str(pair.text), str(pair.mmproj))
    assert text["layers"] == CONFIG.num_hidden_layers - len(CONFIG.cross_attention_layers)
    assert text["width"] == CONFIG.hidden_size
    assert text["heads"] == [CONFIG.num_attention_heads, CONFIG.num_key_value_heads]
    assert text["tokens"] == CONFIG.vocab_size + 8
    assert mmproj["vision_layers"] == [CONFIG.v_num_hidden_layers, CONFIG.v_num_global_layers]
    assert mmproj["cross_attention_layers"] == list(CONFIG.cross_attention_layers)
    assert (mmproj["tile_size"], mmproj["max_num_tiles"]) == (CONFIG.image_size, CONFIG.max_num_tiles)
    assert got["made_together"] is True


def test_parameters_and_bytes_add_up(cli, pair):
    got = shown(cli, pair.text)
    for part in (got["text"], got["mmproj"]):
        assert part["bytes"] == sum(part["bytes_by_type"].values()) == part["bytes_by_type"]["f32"]
        assert part["bytes"] == 4 * part["parameters"]
    n_embd, n_ff, n_kv = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_key_value_heads
    attention = 2 * n_embd * n_embd + 2 * n_embd * (n_embd // CONFIG.num_attention_heads * n_kv)
    layer = attention + 3 * n_embd * n_ff + 2 * n_embd
    outside = 2 * (CONFIG.vocab_size + 8) * n_embd + n_embd
    assert got["text"]["parameters"] == pytest.approx(got["text"]["layers"] * layer + outside, abs=n_embd)  # rope_freqs


def test_the_bundled_model(cli):
    got = shown(cli)
    assert got["name"] == "pocket-vllama"
    assert got["made_together"] is True
    assert set(got["text"]["bytes_by_type"]) == {"q4_K", "q6_K", "f32"}


def test_for_people(cli, pair):
    result = cli("show", pair.text.parent)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line[:8].strip() for line in lines if line[:8].strip()] == ["model", "text", "mmproj", "pair"]
    assert lines[-1].split(maxsplit=1)[1] == "made together"
    assert "None" not in result.stdout
    for words in ("4 self-attention layers", "8 heads", "cross-attention layers 3", "tiles of 28 x 28 pixels"):
        assert words in result.stdout


def test_fit(cli, pair, monkeypatch):
    """The need of a chat; that it is right is tested in test_memory_need.py."""
    monkeypatch.setattr(fit, "available_memory", lambda: 64 << 30)
    got = shown(cli, pair.text, "--fit", "--ctx-size", "1024", "--kv-type", "q8_0", "--cross-kv-type", "f32")
    sizes = read_sizes(Pair(pair.text, pair.mmproj))
    need = memory_need(sizes, MemorySettings(1024, "q8_0", "f32"))
    assert got["fit"]["need_total"] == need.total == sum(got["fit"]["need"].values())
    assert got["fit"]["phases"][need.peak] == need.total == max(got["fit"]["phases"].values())
    assert got["fit"]["fits"] is True and got["fit"]["options"] == []
    assert "fit" not in shown(cli, pair.text)
    lines = cli("show", pair.text, "--fit").stdout.splitlines()
    assert lines[-1] == "It fits." and any(line.startswith("  context of 4096 (f16)") for line in lines)


def test_what_does_not_fit(cli, pair, monkeypatch):
    small = memory_need(read_sizes(Pair(pair.text, pair.mmproj)), MemorySettings(1024)).total
    monkeypatch.setattr(fit, "available_memory", lambda: int(1.06 * small))
    result = cli("show", pair.text, "--fit", "--ctx-size", "1000000")
    assert result.exit_code == 0
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"It does not fit: {pair.text.name} needs ") and "try --ctx-size " in last
    monkeypatch.setattr(fit, "available_memory", lambda: 1 << 20)
    assert "it fits with no setting" in cli("show", pair.text, "--fit").stdout
    monkeypatch.setattr(fit, "available_memory", lambda: None)
    assert "fit." not in cli("show", pair.text, "--fit").stdout, "unknown on this system"


def test_a_graft_is_called_one(cli, tiny_checkpoint, tmp_path, pair):
    """The eyes of one model on another text model of the same shapes."""
    import pyvllama

    other = pyvllama.convert(tiny_checkpoint("two_tiles", seed=1), tmp_path, text_type="f32")
    assert shown(cli, other.text, "--mmproj", pair.mmproj)["made_together"] is False
    assert "grafted" in cli("show", other.text, "--mmproj", pair.mmproj).stdout
    result = cli("run", other.text, "--mmproj", pair.mmproj, "--max-tokens", "2", "Hello")
    assert result.exit_code == 0
    assert "grafted" in result.stderr


def test_refusals(cli, pair, tmp_path, no_picture):
    assert_refused(cli("show", "gone.gguf"), r"gone\.gguf: no such file")
    assert_refused(cli("show", tmp_path), "no GGUF files")
    assert_refused(cli("show", shutil.copy(pair.text, tmp_path)), "no mmproj-")
    assert_refused(cli("show", no_picture, "--mmproj", pair.mmproj), r"notes\.png")
    assert_refused(cli("show", pair.mmproj, "--mmproj", pair.mmproj), "this is an mmproj file")
    assert_refused(cli("show", pair.text, "--mmproj", pair.text), f"{pair.text.name}: this is no mmproj")


@pytest.mark.parametrize("which", ["text", "mmproj"])
@pytest.mark.parametrize("n_bytes", [0, 5000])
def test_truncated_files(cli, pair, tmp_path, which, n_bytes):
    (tmp_path / "cut.gguf").write_bytes(getattr(pair, which).read_bytes()[:n_bytes])
    files = {"text": pair.text, "mmproj": pair.mmproj, which: tmp_path / "cut.gguf"}
    assert_refused(cli("show", files["text"], "--mmproj", files["mmproj"]), r"cut\.gguf")


def test_misused(cli):
    assert_misused(cli("show", "a.gguf", "b.gguf"), "b.gguf")


def test_options_of_fit_without_it(cli, pair):
    result = cli("show", pair.text, "--ctx-size", "512", "--no-repack")
    assert_misused(result, "--ctx-size, --repack mean nothing without --fit")
    assert_misused(cli("show", pair.text, "--kv-type", "f32"), "--kv-type means nothing without --fit")
