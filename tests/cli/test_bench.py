"""`pyvllama bench`: the table, the JSON object, and what is refused."""

import json

import pytest
from refusals import EXIT_ERROR, assert_misused, assert_refused

QUICK = ("-p", 8, "-n", 3, "-r", 1, "-t", 1)


def test_the_pocket_model_as_a_table(cli):
    result = cli("bench", *QUICK, "--tiles", "1,4")
    assert result.exit_code == 0, result.stderr
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert head == ["model", "vision", "size", "params", "backend", "threads", "test", "time", "t/s"]
    assert all(set(cell) <= {"-", ":"} for cell in rule) and len({len(line) for line in table}) == 1
    names = ["image 1 tile", "image 4 tiles", "pp8", "tg3", "pp8 @ 4 tiles", "tg3 @ 4 tiles"]
    assert [row[6] for row in rows] == names
    assert [bool(row[8]) for row in rows] == [False, False, True, True, True, True]
    assert all(float(row[8]) > 0 for row in rows[2:]) and all("[" in row[7] for row in rows)
    assert (
        "load " in result.stdout
        and "peak memory " in result.stdout
        and "median [smallest, largest] of 1" in (result.stdout)
    )


def test_json_is_one_object(cli, pair):
    result = cli("bench", pair.text, *QUICK, "--tiles", "0", "-o", "json", "--cross-kv-type", "f32")
    assert result.exit_code == 0 and result.stderr == ""
    d = json.loads(result.stdout)
    assert [r["test"] for r in d["results"]] == ["pp8", "tg3"]
    assert d["text"] == pair.text.name and d["cross_kv_type"] == "f32" and d["n_threads"] == 1
    assert d["results"][1]["per_second"] == pytest.approx(3000 / d["results"][1]["median_ms"])


def test_what_makes_a_line_comparable(cli, pair):
    text = cli("bench", pair.text, *QUICK, "--tiles", "0", "--kv-type", "bf16").stdout
    d = json.loads(cli("bench", pair.text, *QUICK, "--tiles", "0", "-o", "json").stdout)
    assert f"{pair.text.name} + {pair.mmproj.name}" in text and "keys and values bf16" in text
    machine = d["machine"]
    for value in (machine["cpu"], f"{machine['cores']} cores, memory ", f"kernels {d['kernels']}", machine["python"]):
        assert value in text, value


def test_weights_that_are_not_copied(cli, pair):
    options = (*QUICK, "--tiles", "0", "--no-repack")
    assert "weights in the mapped files" in cli("bench", pair.text, *options).stdout
    assert json.loads(cli("bench", pair.text, *options, "-o", "json").stdout)["repack"] is False


def test_several_lengths(cli, pair):
    d = json.loads(cli("bench", pair.text, *QUICK, "-p", "4,9", "-n", "0", "--tiles", "0", "-o", "json").stdout)
    assert [(r["test"], r["n_prompt"]) for r in d["results"]] == [("pp4", 4), ("pp9", 9)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "many"), "'many' is no list of numbers such as 128,512"),
        (("-n", "1,-2"), "'1,-2' is no list of numbers"),
        (("-r", "0"), "0 is not in the range"),
        (("-o", "csv"), "'csv' is not one of"),
    ],
    ids=str,
)
def test_misuse(cli, arguments, message):
    assert_misused(cli("bench", *arguments), message)


def test_tiles_that_the_model_does_not_know(cli, pair):
    assert_refused(cli("bench", pair.text, *QUICK, "--tiles", "3"), "pictures of this model have 1, 2 tiles, not 3")


def test_no_model(cli, tmp_path):
    result = cli("bench", tmp_path / "gone.gguf")
    assert result.exit_code == EXIT_ERROR and "no such file" in result.stderr
