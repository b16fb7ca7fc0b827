"""`pyvllama caption`: a line a picture, at once; goes on where it stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from file_size_limit import file_size_limit
from refusals import assert_refused


@pytest.fixture
def folder(tmp_path, pocket_checkpoint):
    """Six pictures, one of them in a folder below, and other files."""
    where = tmp_path / "photos"
    (where / "more").mkdir(parents=True)
    samples = pocket_checkpoint / "samples"
    for name in ("01_square.png", "02_wide.png", "06_strip_3to1.jpg", "07_strip_1to3.webp", "17_text.png"):
        shutil.copy(samples / name, where)
    shutil.copy(samples / "03_tall.png", where / "more" / "ünïcode name.PNG")
    (where / "notes.txt").write_text("no picture")
    return where


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_picture_once(cli, folder, tmp_path):
    out = tmp_path / "captions.jsonl"
    result = cli("caption", folder, "-o", out, "-p", "What is this?", "--parallel", "3", "-t", "1")
    assert result.exit_code == 0, result.output
    assert "6 captions" in result.stderr
    found = {line["file"]: line for line in lines(out)}
    assert set(found) == {
        "01_square.png", "02_wide.png", "06_strip_3to1.jpg", "07_strip_1to3.webp", "17_text.png",
        "more/ünïcode name.PNG",
    }  # fmt: skip
    for name, line in found.items():
        alone = cli("run", "-i", folder / name, "--temperature", "0", "--json", "-t", "1", "What is this?")
        assert line["caption"] == json.loads(alone.stdout)["text"]
        assert line["finish_reason"] == "stop"
        assert line["timings"]["image_encode_ms"] > 0
    before = out.read_bytes()
    again = cli("caption", folder, "-o", out, "-p", "What is this?")
    assert (again.exit_code, out.read_bytes()) == (0, before)
    assert "none without a caption" in again.stderr


def test_it_goes_on_where_it_stopped(cli, folder, tmp_path):
    """Also after a line that was cut in the middle, and with pictures that failed."""
    out = tmp_path / "captions.jsonl"
    (folder / "broken.jpg").write_bytes(b"no picture")
    assert cli("caption", folder, "-o", out, "-t", "1").exit_code == 1
    whole = {line["file"]: line for line in lines(out)}
    assert "broken.jpg" in whole["broken.jpg"]["error"]
    kept = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(kept[:3]) + kept[3][: len(kept[3]) // 2], encoding="utf-8")
    shutil.copy(folder / "01_square.png", folder / "broken.jpg")
    result = cli("caption", folder, "-o", out, "-t", "1")
    assert result.exit_code == 0, result.output
    captions = [line["file"] for line in lines(out) if "caption" in line]
    assert sorted(captions) == sorted(whole)


def test_refusals(cli, folder, tmp_path):
    assert_refused(cli("caption", tmp_path / "none", "-o", tmp_path / "x.jsonl"), "no such directory")
    (tmp_path / "other.jsonl").write_text('{"caption": "x", "file": "a"}\nmy diary\n')
    assert_refused(cli("caption", folder, "-o", tmp_path / "other.jsonl"), "line 2", "no line of captions")
    assert (tmp_path / "other.jsonl").read_text().endswith("my diary\n")


def test_a_full_disk(cli, folder, tmp_path):
    """It is said which file; what fits is kept, and with more room the same command goes on."""
    out = tmp_path / "captions.jsonl"
    before = json.dumps({"file": "gone.png", "caption": "x" * 100_000}) + "\n"
    for room in (0, 600):
        out.write_text(before)
        with file_size_limit(len(before) + room):
            result = cli("caption", folder, "-o", out, "-t", "1", "--max-tokens", "8")
        assert_refused(result, rf"{re.escape(str(out))} cannot be written: File too large; run again")
        assert out.stat().st_size == len(before) + room
    result = cli("caption", folder, "-o", out, "-t", "1", "--max-tokens", "8")
    assert result.exit_code == 0, result.output
    assert len({line["file"] for line in lines(out)}) == len(lines(out)) == 7


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_what_is_done(folder, tmp_path):
    for i in range(60):
        shutil.copy(folder / "01_square.png", folder / f"copy{i}.png")
    out = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "pyvllama.cli.main", "caption", str(folder), "-o", str(out), "-t", "1"]
    process = subprocess.Popen([*command, "--parallel", "2"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.stat().st_size == 0):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert 1 <= len(lines(out)) < 66
