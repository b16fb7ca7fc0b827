"""Bad input on the command line: exit code 2, a line that says what is wrong, no traceback; 0 for what is right."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pyvllama.cli.main import main

EXIT_ERROR = 2


@pytest.fixture
def cli():
    """cli(*arguments, input=None) -> the result, with stdout and stderr apart."""

    def run(*arguments, stdin=None):
        return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin, catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tiny_pair("two_tiles")


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory) -> dict[str, Path]:
    """Things that are not what they should be."""
    out_dir = tmp_path_factory.mktemp("files")
    made = {
        name: out_dir / name for name in ("no_picture.png", "picture.png", "truncated.gguf", "empty", "alone-F32.gguf")
    }
    made["no_picture.png"].write_bytes(b"no picture")
    Image.new("RGB", (30, 20), "red").save(made["picture.png"])
    made["truncated.gguf"].write_bytes(pair.text.read_bytes()[:5000])
    made["empty"].mkdir()
    alone = out_dir / "apart"
    alone.mkdir()
    made["alone-F32.gguf"] = Path(shutil.copy(pair.text, alone))
    return made


def assert_refused(result, *words):
    assert result.exit_code == EXIT_ERROR, (result.exit_code, result.output)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr, result.stderr


BAD = {
    "no such model": (["run", "nothing-here.gguf", "Hi"], ["nothing-here.gguf"]),
    "a directory without a model": (["run", "{empty}", "Hi"], ["GGUF"]),
    "no mmproj": (["run", "{alone-F32.gguf}", "Hi"], ["mmproj"]),
    "truncated text file": (["run", "{truncated.gguf}", "--mmproj", "{mmproj}", "Hi"], ["truncated.gguf"]),
    "truncated mmproj": (["run", "{text}", "--mmproj", "{truncated.gguf}", "Hi"], ["truncated.gguf"]),
    "mmproj named as the model": (["run", "{mmproj}", "--mmproj", "{mmproj}", "Hi"], ["mmproj"]),
    "no picture": (["run", "{text}", "-i", "{no_picture.png}", "Hi"], ["no_picture.png"]),
    "picture that is not there": (["run", "{text}", "-i", "gone.png", "Hi"], ["gone.png"]),
    "prompt too long": (["run", "{text}", "-c", "64", "word " * 2000], ["256"]),
    "option out of range": (["run", "{text}", "--top-p", "7", "Hi"], ["top-p"]),
    "unknown option": (["run", "{text}", "--nonsense", "Hi"], ["--nonsense"]),
    "convert: no such checkpoint": (["convert", "nothing-here", "-o", "{empty}"], ["nothing-here"]),
    "convert: no checkpoint in it": (["convert", "{empty}", "-o", "{empty}"], ["config.json"]),
    "convert: unknown type": (["convert", "{checkpoint}", "-o", "{empty}", "-q", "q9_9"], ["q9_9"]),
    "show: no such file": (["show", "nothing-here.gguf"], ["nothing-here.gguf"]),
    "show: no GGUF": (["show", "{no_picture.png}"], ["no_picture.png"]),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused_in_one_line(cli, pair, files, tiny_checkpoint, name):
    places = files | {"text": pair.text, "mmproj": pair.mmproj, "checkpoint": tiny_checkpoint("two_tiles")}
    arguments, words = BAD[name]
    result = cli(*(places.get(a.strip("{}"), a) if a.startswith("{") else a for a in arguments))
    assert_refused(result, *words)


def test_prompt_from_an_empty_pipe(cli, pair):
    assert_refused(cli("run", pair.text, stdin=""))


def test_missing_shard(cli, tmp_path, tiny_checkpoint):
    checkpoint = Path(shutil.copytree(tiny_checkpoint("two_tiles", n_shards=3), tmp_path / "checkpoint"))
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    assert_refused(cli("convert", checkpoint, "-o", tmp_path / "out"), "model-00002-of-00003.safetensors")
    assert not list(tmp_path.glob("out/*"))


def test_json_is_one_object_and_nothing_else(cli, pair, files):
    result = cli(
        "run", pair.text, "-i", files["picture.png"], "--json", "--max-tokens", "4", "--temperature", "0", "Hi"
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert {"text", "usage", "timings"} <= set(answer)
    assert answer["usage"]["completion_tokens"] <= 4
    expected = {"image_encode_ms", "image_cached", "prompt_n", "prompt_ms", "prompt_per_second"}
    assert expected | {"predicted_n", "predicted_ms", "predicted_per_second"} <= set(answer["timings"])


def test_as_a_process_it_ends_without_a_traceback():
    run = subprocess.run(
        [sys.executable, "-m", "pyvllama.cli.main", "run", "nothing-here.gguf", "Hi"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (EXIT_ERROR, "")
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) <= 3
