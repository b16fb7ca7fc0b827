"""`pyvllama run`: one answer and its cost, JSON, pipes, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys

import gguf_bytes
import pytest
from refusals import assert_misused, assert_refused

from pyvllama.cli.run import split_arguments
from pyvllama.locate import pocket_pair

ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."
QUESTION = "Describe the image."
BUNDLED = "No model named: using the bundled pocket model"
TIMINGS = [
    "image_encode_ms", "image_cached", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "prompt_per_second",
    "predicted_per_second",
]  # fmt: skip


# --- one answer ---


def test_an_answer_from_the_bundled_model(cli, picture):
    result = cli("run", "-i", picture, QUESTION)
    assert (result.exit_code, result.stdout) == (0, f"{ANSWER}\n")
    note, timings = result.stderr.splitlines()
    assert note.startswith(BUNDLED)
    for word in ("image", "prompt", "answer", "/s"):
        assert word in timings


def test_a_named_model_needs_no_note(cli, pocket_pairs, picture):
    text = pocket_pairs("q8_0", "q8_0").text
    for model in (text, text.parent):
        result = cli("run", model, "-i", picture, "--no-timings", QUESTION)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{ANSWER}\n", "")


def test_an_mmproj_named_for_the_bundled_model_is_used(cli, pocket_pairs, pair, picture):
    mmproj = pocket_pairs("f32", "f32").mmproj
    assert cli("run", "--mmproj", mmproj, "-i", picture, QUESTION).stdout == f"{ANSWER}\n"
    assert_refused(cli("run", "--mmproj", pair.mmproj, QUESTION), "do not belong together")


def test_several_pictures(cli, picture):
    result = cli("run", "-i", picture, "-i", picture, "--json", QUESTION)
    assert json.loads(result.stdout)["timings"]["image_cached"] == 1


def test_a_picture_encoded_by_an_earlier_run(cli, picture, tmp_path):
    for cached in (0, 1):
        result = cli("run", "--image-cache", tmp_path / "pictures", "-i", picture, "--json", QUESTION)
        answer = json.loads(result.stdout)
        assert (answer["text"], answer["timings"]["image_cached"]) == (ANSWER, cached)
        assert (answer["timings"]["image_encode_ms"] == 0) == bool(cached)
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_an_image_cache_that_is_none(cli, picture):
    assert_misused(cli("run", "--image-cache", picture, "-i", picture, QUESTION), "is a file")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_prompt_from_a_pipe(cli, picture, as_json):
    result = cli("run", "-i", picture, *["--json"] * as_json, stdin=f"  {QUESTION}\n")
    assert ANSWER in result.stdout


def test_a_picture_alone_is_a_question_too(cli, picture):
    result = cli("run", "-i", picture, "--json", stdin="")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["text"]


def test_a_system_prompt(cli):
    def n_prompt(*options):
        return json.loads(cli("run", *options, "--json", "Hello!").stdout)["usage"]["prompt_tokens"]

    assert n_prompt("-s", "Be brief.") > n_prompt()


def test_options_reach_the_sampler(cli, picture):
    def answer(*options):
        return json.loads(cli("run", "-i", picture, "--json", *options, QUESTION).stdout)

    assert answer("--max-tokens", 3)["usage"]["completion_tokens"] == 3
    assert answer("--stop", " at the", "--stop", "zzz")["text"] == "A yellow ring"
    # hot enough that 17 tokens in a row are not the greedy ones
    hot = [answer("--temperature", 5, "--top-p", 1, "--seed", 1, "--max-tokens", 20) for _ in range(2)]
    assert hot[0]["text"] == hot[1]["text"] != ANSWER
    assert answer("--temperature", 5, "--top-k", 1)["text"] == ANSWER
    assert answer("--temperature", 5, "--min-p", 1, "--top-p", 1)["text"] == ANSWER
    assert answer("--presence-penalty", 100)["text"] != ANSWER
    assert answer("--frequency-penalty", 100)["text"] != ANSWER
    assert answer("--repeat-penalty", 100)["text"] != ANSWER


# --- JSON ---


def test_json_is_one_object_and_nothing_else(cli, picture):
    result = cli("run", "-i", picture, "--json", QUESTION)
    assert len(result.stdout.splitlines()) == 1
    got = json.loads(result.stdout)
    assert list(got) == ["text", "finish_reason", "model", "usage", "timings"]
    assert (got["text"], got["finish_reason"], got["model"]) == (ANSWER, "stop", "pocket-vllama")
    assert set(got["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert set(got["timings"]) == set(TIMINGS)
    assert got["timings"]["image_encode_ms"] > 0
    assert result.stderr.splitlines() == [line for line in result.stderr.splitlines() if line.startswith(BUNDLED)]


# --- what is a model and what a prompt ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (None, None)),
        (("What is this?",), (None, "What is this?")),
        (("Hello",), (None, "Hello")),
        (("model.gguf",), ("model.gguf", None)),
        (("models/llama",), ("models/llama", None)),
        (("here",), ("here", None)),  # a directory of that name
        (("Is it a/an apple or/and a pear?",), (None, "Is it a/an apple or/and a pear?")),
        (("",), (None, "")),
        (("word " * 1000,), (None, "word " * 1000)),  # longer than a file name can be
        (("x" * 5000,), (None, "x" * 5000)),
        (("models", "Hello"), ("models", "Hello")),
        (("Hello", "you"), ("Hello", "you")),
    ],
)
def test_model_and_prompt(arguments, expected, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_arguments(arguments) == expected


# --- refusals ---


def test_a_missing_model(cli):
    assert_refused(cli("run", "gone.gguf", "Hi"), r"gone\.gguf: no such file or directory")


def test_a_model_name_that_no_file_can_have(cli):
    assert_refused(cli("run", "x" * 300 + ".gguf", "Hi"), "names no file")
    assert_refused(cli("run", "~nobody-of-that-name/a.gguf", "Hi"), "names no file")


def test_a_missing_mmproj(cli, pair, tmp_path):
    text = shutil.copy(pair.text, tmp_path)
    assert_refused(cli("run", text, "Hi"), "no mmproj-", "--mmproj", "pyvllama convert")
    assert_refused(cli("run", text, "--mmproj", tmp_path / "gone.gguf", "Hi"), r"gone\.gguf: no such mmproj file")


def test_a_mismatched_pair_names_both_files_and_both_values(cli, pair, tiny_pair):
    other = tiny_pair("small").mmproj
    line = assert_refused(cli("run", pair.text, "--mmproj", other, "Hi"), str(pair.text), str(other))
    assert "llama.attention.head_count is 8, the mmproj was made for 4" in line


@pytest.mark.parametrize("which", ["text", "mmproj"])
@pytest.mark.parametrize("n_bytes", [0, 3, 5000, -64])
def test_a_truncated_file(cli, pair, tmp_path, which, n_bytes):
    for name in ("text", "mmproj"):
        data = getattr(pair, name).read_bytes()
        (tmp_path / f"{name}.gguf").write_bytes(data[:n_bytes] if name == which else data)
    result = cli("run", tmp_path / "text.gguf", "--mmproj", tmp_path / "mmproj.gguf", "Hi")
    assert_refused(result, rf"{which}\.gguf", "empty|truncated|GGUF")


def test_another_architecture(cli, pair, tmp_path):
    file = gguf_bytes.read(pair.text)
    file.set("general.architecture", gguf_bytes.STRING, gguf_bytes.string("qwen2"))
    (tmp_path / "qwen.gguf").write_bytes(file.to_bytes())
    result = cli("run", tmp_path / "qwen.gguf", "--mmproj", pair.mmproj, "Hi")
    assert_refused(result, r"qwen\.gguf", "'qwen2'", "'llama'")


def test_files_the_wrong_way_round(cli, pair):
    assert_refused(cli("run", pair.mmproj, "Hi", "--mmproj", pair.text), "this is an mmproj file")
    assert_refused(cli("run", pair.text, "--mmproj", pair.text, "Hi"), pair.text.name)


def test_a_type_for_what_is_converted_already(cli, pair):
    assert_refused(cli("run", pair.text, "-q", "q8_0", "Hi"), "text_type = 'q8_0': .* is no checkpoint")


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_an_empty_prompt(cli, pair, question):
    assert_refused(cli("run", question), "the prompt is empty", "pipe")
    assert_refused(cli("run", pair.text, question), "the prompt is empty")
    assert_refused(cli("run", pair.text, stdin=question), "the prompt is empty")


def test_a_prompt_longer_than_the_context_says_both_numbers(cli, pair):
    line = assert_refused(cli("run", pair.text, "-c", "256", "word " * 2000), "--ctx-size")
    n_tokens, n_ctx = (int(word) for word in line.replace(",", "").replace(":", "").split() if word.isdigit())
    assert n_tokens > n_ctx == 256


def test_pictures_that_are_none(cli, no_picture, huge_picture, tmp_path):
    assert_refused(cli("run", "-i", tmp_path / "gone.png", "Hi"), r"gone\.png")
    assert_refused(cli("run", "-i", no_picture, "Hi"), r"notes\.png")
    assert_refused(cli("run", "-i", huge_picture, "Hi"), r"huge\.bmp", "pixels")
    assert_refused(cli("run", "-i", tmp_path, "Hi"), "directory")
    assert_refused(cli("run", "-i", "", "Hi"), "path")
    assert_refused(cli("run", "-i", "data:image/png;base64,AAAA", "Hi"), "data: URI", "picture")
    assert_refused(cli("run", "-i", "ftp://example.org/a.png", "Hi"), "ftp")


def test_which_of_several_pictures_is_none(cli, picture, no_picture):
    assert_refused(
        cli("run", "-i", picture, "-i", no_picture, "-i", picture, "Hi"), r"image 2 of 3: .*notes\.png is not"
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--top-p", "7"], "--top-p"),
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "warm"], "--temperature"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--ctx-size", "0"], "--ctx-size"),
        (["--threads", "100000"], "--threads"),
        (["--nonsense"], "--nonsense"),
        (["too", "many"], "quote the prompt"),
    ],
    ids=str,
)
def test_misused_options(cli, options, word):
    assert_misused(cli("run", *options, "Hi"), word)


@pytest.mark.parametrize(
    ("option", "value", "range_"),
    [
        ("temperature", "101", "between 0.0 and 100.0, not 101.0"),
        ("temperature", "nan", "not nan"),
        ("repeat-penalty", "-3", "between 0.01 and 100.0"),
        ("seed", str(2**32 - 1), "between 0 and 4294967294"),
        ("stop", "", "at least one character"),
    ],
)
def test_options_out_of_the_models_range(cli, option, value, range_):
    assert_refused(cli("run", f"--{option}", value, "Hi"), option.replace("-", "_"), range_)


# --- as a process ---


def run_program(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pyvllama.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_program_answers_and_says_nothing_else(picture):
    run = run_program("run", "-t", 1, "-i", picture, "--no-timings", QUESTION, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout) == (0, f"{ANSWER}\n")
    assert run.stderr.splitlines()[1:] == []
    assert run.stderr.startswith(BUNDLED)


def test_the_program_takes_a_prompt_from_a_pipe(picture):
    run = run_program("run", "-t", 1, "-i", picture, "--json", input=QUESTION)
    assert json.loads(run.stdout)["text"] == ANSWER


def test_the_program_refuses_without_a_traceback():
    run = run_program("run", "gone.gguf", "Hi", stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "Error: gone.gguf: no such file or directory\n"


def test_a_reader_that_leaves_is_no_error_worth_a_traceback(picture):
    program = subprocess.Popen(
        [sys.executable, "-m", "pyvllama.cli.main", "run", "-t", "1", "-i", str(picture), QUESTION],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with program:
        program.stdout.close()
        error = program.stderr.read().decode()
    assert "Traceback" not in error
    assert program.returncode != 0


# --- guessing ahead ---


@pytest.mark.parametrize(
    "draft", [["--draft-lookup"], ["-md", "MODEL"], ["--model-draft", "MODEL", "--draft-max", "2"]]
)
def test_a_draft_changes_no_answer(cli, picture, draft):
    options = [str(pocket_pair().text) if word == "MODEL" else word for word in draft]
    result = cli("run", *options, "-i", picture, "--temperature", "0", QUESTION)
    assert (result.exit_code, result.stdout) == (0, f"{ANSWER}\n")
    assert re.search(r"draft \d+ of \d+ right", result.stderr)
    timings = json.loads(cli("run", *options, "-i", picture, "--json", QUESTION).stdout)["timings"]
    assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"]


def test_drafts_that_are_refused(cli, pair, tmp_path):
    assert_misused(cli("run", "--draft-lookup", "-md", "x.gguf", QUESTION), "exclude one another")
    assert_misused(cli("run", "--draft-max", "4", QUESTION), "--draft-max needs")
    assert_misused(cli("run", "--draft-lookup", "--draft-max", "0", QUESTION), "--draft-max")
    assert_refused(cli("run", "-md", tmp_path / "none.gguf", QUESTION), "no such draft model")
    assert_refused(cli("run", "-md", pair.text, QUESTION), "cannot draft for")
