"""`pyvllama quantize`: files, directories, and what it refuses."""

import numpy as np
from refusals import assert_refused

from pyvllama.conversion.imatrix_file import ColumnSums, ImportanceMatrix
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


def test_no_file_is_written_twice(cli, tiny_pair, tmp_path):
    text = tiny_pair("two_tiles").text
    assert_refused(cli("quantize", text, text, "-o", tmp_path, "-q", "q8_0"), "Q8_0.gguf would be written twice")
    assert not list(tmp_path.iterdir())


def test_shards_are_not_written_over_themselves(cli, tiny_pair, tmp_path):
    arguments = ("-o", tmp_path, "-q", "q8_0", "--split-max-size", "200K", "--overwrite")
    first = cli("quantize", tiny_pair("two_tiles").text, *arguments).stdout.split("  ")[0]
    assert "-00001-of-" in first
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert_refused(cli("quantize", first, *arguments), "is the source itself")
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_matrix_that_knows_only_the_text_model(cli, tiny_pair, tmp_path):
    """As llama.cpp's own does: said, and what cannot be done without is refused with advice."""
    pair = tiny_pair("two_tiles")
    tensors = GGUFFile(pair.text).tensors.values()
    names = {t.name: t.shape[-1] for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2}
    sums = {name: ColumnSums(np.ones(n), 100) for name, n in names.items()}
    ImportanceMatrix(sums, ("x.txt",), 512).write(tmp_path / "imatrix.gguf")
    arguments = ("-o", tmp_path / "out", "--imatrix", tmp_path / "imatrix.gguf")
    result = cli("quantize", pair.text, pair.mmproj, *arguments, "-q", "q5_0")
    assert result.exit_code == 0, result.output
    assert "has nothing on" in result.stderr and "(xattn.blk." in result.stderr
    assert "has nothing on" not in cli("quantize", pair.text, *arguments, "-q", "q4_0").stderr
