"""`pyvllama quantize`: files, directories, and what it refuses."""

from refusals import assert_refused

from pyvllama.gguf_file import GGUFFile


def test_a_directory_is_a_pair(cli, tiny_pair, tmp_path):
    source = tiny_pair("two_tiles").text.parent
    result = cli("quantize", source, "-o", tmp_path, "-q", "q5_0", "--mmproj-type", "q8_0", "-t", "2")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mmproj-tiny-two_tiles-Q8_0.gguf",
        "tiny-two_tiles-Q5_0.gguf",
    ]
    assert GGUFFile(tmp_path / "tiny-two_tiles-Q5_0.gguf").tensors["blk.0.attn_q.weight"].type == "q5_0"
    assert str(tmp_path / "tiny-two_tiles-Q5_0.gguf") in result.stdout
    again = cli("quantize", source, "-o", tmp_path, "-q", "q5_0", "--mmproj-type", "q8_0")
    assert_refused(again, "exist", "overwrit")


def test_one_file(cli, tiny_pair, tmp_path):
    result = cli("quantize", tiny_pair("two_tiles").text, "-o", tmp_path, "-q", "f16")
    assert result.exit_code == 0, result.output
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-two_tiles-F16.gguf"]


def test_refusals(cli, pocket_pairs, tmp_path):
    text = pocket_pairs("f32", "f32").text
    assert_refused(cli("quantize", text, "-o", tmp_path, "-q", "q4"), "text_type = 'q4'", "q4_k_m")
    assert_refused(cli("quantize", tmp_path / "none.gguf", "-o", tmp_path), "does not exist")
    assert_refused(cli("quantize", text, "-o", tmp_path, "-q", "iq1_s"), "importance matrix")
