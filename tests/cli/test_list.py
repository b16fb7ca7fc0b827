"""`pyvllama list` and `rm` of converted models, and `run` and `show` by their names. Pulled ones: test_pull.py."""

import json
import os
import shutil
from pathlib import Path

import pytest
from refusals import assert_misused, assert_refused

from pyvllama.cli import ui


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("small"), tmp_path / "my-tune")


def listed(cli):
    result = cli("list", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_nothing_yet(cli):
    assert listed(cli) == []
    result = cli("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No models yet" in result.stderr


def test_from_a_checkpoint_to_nothing_left(cli, checkpoint, tmp_path):
    result = cli("run", checkpoint, "-q", "f32", "--max-tokens", "1", "--json", "Hello")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "my-tune"
    assert f"Converting {checkpoint} to F32 and Q8_0, once" in result.stderr

    (item,) = listed(cli)
    assert (item["name"], item["kind"], item["type"], item["source"]) == (
        "my-tune-F32",
        "converted",
        "F32",
        str(checkpoint),
    )
    text, mmproj = Path(item["text"]), Path(item["mmproj"])
    assert (item["text_bytes"], item["mmproj_bytes"]) == (text.stat().st_size, mmproj.stat().st_size)
    assert text.is_relative_to(tmp_path / "pyvllama-cache")

    heads, row = cli("list").stdout.splitlines()
    assert heads.split() == ["NAME", "TYPE", "TEXT", "MMPROJ", "USED", "SOURCE"]
    assert row.startswith("my-tune-F32  F32 ")
    assert row.endswith(f"just now  converted {checkpoint}")

    cache = json.loads(cli("cache", "--json").stdout)
    assert cache["own"] == {
        "path": str(tmp_path / "pyvllama-cache"),
        "models": 1,
        "bytes": item["text_bytes"] + item["mmproj_bytes"],
    }
    assert cache["hub"] == {"path": str(tmp_path / "hub-cache"), "models": 0, "bytes": 0}
    assert "1 model, " in cli("cache").stdout

    assert json.loads(cli("show", "my-tune-F32", "--json").stdout)["text"]["file"] == str(text)
    again = cli("run", "my-tune-F32", "--max-tokens", "1", "--json", stdin="Hello")  # one word, yet no prompt
    assert json.loads(again.stdout)["model"] == "my-tune"
    assert again.stderr == ""

    result = cli("rm", "my-tune-F32", "--yes")
    assert result.exit_code == 0
    assert str(text.parent) in result.stderr
    assert result.stdout == f"{ui.format_bytes(item['text_bytes'] + item['mmproj_bytes'])} freed\n"
    assert listed(cli) == []
    assert not text.parent.exists()
    assert (checkpoint / "config.json").exists()


def test_nothing_is_deleted_without_a_yes(cli, checkpoint, monkeypatch):
    cli("show", checkpoint)
    assert_refused_after_notes(cli("rm", "my-tune-Q4_K_M"), "nothing was deleted")
    for answer, left in ((False, 1), (True, 0)):
        monkeypatch.setattr(ui, "confirm", lambda _, answer=answer: answer)
        cli("rm", "my-tune-Q4_K_M")
        assert len(listed(cli)) == left


def assert_refused_after_notes(result, words):
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr.splitlines()[-1]


def test_names_that_mean_several(cli, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "my-tune")
    for path in (checkpoint, other):
        cli("show", path)
    names = [item["name"] for item in listed(cli)]
    assert len(set(names)) == 2
    assert all(name.startswith("my-tune-Q4_K_M-") for name in names)
    assert_refused(cli("rm", "my-tune-Q4_K_M", "--yes"), "may mean my-tune-Q4_K_M-")
    assert_refused(cli("run", "my-tune-Q4_K_M", "Hello"), "several models of that name")
    assert cli("rm", names[0], names[0], "--yes").exit_code == 0
    assert [item["name"] for item in listed(cli)] == ["my-tune-Q4_K_M"]  # alone, it needs no longer name


@pytest.mark.parametrize("name", ["gone", "..", "../my-tune", "/", ".", "a/b", "*"])
def test_rm_takes_names_and_no_paths(cli, checkpoint, tmp_path, monkeypatch, name):
    cli("show", checkpoint)
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("rm", name, "--yes"), "no model of that name is kept")
    assert_refused(cli("rm", checkpoint, "--yes"), "no model of that name is kept")
    assert len(listed(cli)) == 1
    assert checkpoint.exists()


def test_last_used_first(cli, checkpoint):
    for kind in ("f32", "q8_0"):
        cli("run", checkpoint, "-q", kind, "--max-tokens", "1", "Hello")
    for item, used in zip(listed(cli), (1000, 2_000_000), strict=True):
        note = Path(item["text"]).parent / "entry.json"
        os.utime(note, (used, used))
    assert [item["used"] for item in listed(cli)] == ["1970-01-24T03:33:20+00:00", "1970-01-01T00:16:40+00:00"]


def test_misused(cli):
    assert_misused(cli("rm"), "NAME")
    assert_misused(cli("list", "extra"), "extra")
    assert_misused(cli("pull"), "REPO")
    assert_misused(cli("push", "models"), "REPO")
