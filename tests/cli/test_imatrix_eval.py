"""`pyvllama imatrix` and `pyvllama eval` in this process."""

import json

import pytest
from chats import write_chats, write_text_chats


@pytest.fixture(scope="module")
def chats(tmp_path_factory, samples):
    return write_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl", [samples[0] | {"qa": samples[0]["qa"][:2]}])


def test_imatrix(cli, chats, tmp_path):
    """Without a model: the bundled one."""
    text = write_text_chats(tmp_path / "text.jsonl", 1)
    result = cli("imatrix", "-d", chats, "-d", text, "-o", tmp_path / "out", "-t", 1)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        str(tmp_path / "out" / f"imatrix-{kind}pocket-vllama.gguf") for kind in ("", "mmproj-")
    ]
    assert "3 chats, 1 pictures and 0 chunks of text, " in result.stderr
    again = cli("imatrix", "-d", text, "-o", tmp_path / "out", "-t", 1)
    assert again.exit_code == 2 and "already; ask for overwriting" in again.stderr
    assert "no pictures" in cli("imatrix", "-d", text, "-o", tmp_path / "2", "--name", "x", "-t", 1).stderr
    assert [p.name for p in (tmp_path / "2").iterdir()] == ["imatrix-x.gguf"]


def test_imatrix_says_which_line_is_wrong(cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": 7}')
    result = cli("imatrix", "-d", tmp_path / "a.jsonl", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "a.jsonl:1: expected" in result.stderr.replace("\n", "")
    assert cli("imatrix", "-o", tmp_path).exit_code == 2


@pytest.fixture(scope="module")
def reference(pocket_pairs):
    return pocket_pairs("f32", "f32").text


def test_eval(cli, chats, reference, tmp_path):
    result = cli("eval", "-r", reference, "-d", chats, "-d", write_text_chats(tmp_path / "b.jsonl", 1), "-t", 1)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("model       pocket-vllama-Q4_K_M.gguf 2.7 MiB + mmproj-pocket-vllama-Q8_0.gguf ")
    assert lines[2] == "chats       2 with pictures, 1 without"
    assert lines[4].split() == ["all", "pictures", "text", "only"]
    figures = {line[:24].strip(): line[24:].split() for line in lines[5:]}
    assert len(figures["tokens"]) == 3
    assert int(figures["tokens"][0]) == int(figures["tokens"][1]) + int(figures["tokens"][2])
    assert 0 < float(figures["KL divergence, mean"][0]) < 0.05
    assert float(figures["ratio"][0]) == pytest.approx(1, abs=0.1)


def test_eval_as_json(cli, chats, reference):
    result = cli("eval", "-r", reference, "-d", chats, "--json", "-t", 1)
    d = json.loads(result.stdout)
    assert d["texts"] is None and d["images"] == d["all"]
    assert d["model"]["text_bytes"] < d["reference"]["text_bytes"]
    assert 0.9 < d["all"]["same_top"] <= 1


def test_eval_needs_a_reference(cli, chats, tmp_path):
    assert cli("eval", "-d", chats).exit_code == 2
    result = cli("eval", "-r", tmp_path / "gone.gguf", "-d", chats)
    assert result.exit_code == 2 and "no such file" in result.stderr
