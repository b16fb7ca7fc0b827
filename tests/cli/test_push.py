"""`pyvllama push`: the card, and the upload to a hub of our own by the Hub's real client."""

import json
import shutil

import hub_server
import pytest
import yaml
from refusals import assert_refused

import pyvllama
from pyvllama.locate import pocket_pair

REPO = "somebody/Pocket-GGUF"
TEXT, MMPROJ = pocket_pair().text.name, pocket_pair().mmproj.name


@pytest.fixture
def hub(tmp_path):
    with hub_server.serve() as running:
        running.root = tmp_path / "hub"
        running.writers.add("hf_writer")
        yield running


@pytest.fixture
def push(hub, tmp_path):
    """push(*arguments, **environment) -> (exit status, stdout, stderr)"""

    def call(*arguments, **environment):
        done = hub_server.run_program(hub, tmp_path, "push", *arguments, **({"HF_TOKEN": "hf_writer"} | environment))
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (pocket_pair().text, pocket_pair().mmproj):
        shutil.copy(path, folder)
    return folder


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_one_commit_with_files_and_card(hub, push, models):
    (models / "notes.txt").write_text("not for the Hub")
    status, out, err = push(models, REPO, "--private", "--base-model", "some-org/pocket", "--quantized-by", "me")
    assert status == 0, err
    assert hub.commits == [[TEXT, MMPROJ, "README.md"]]
    assert hub.private == {REPO}
    repo = hub.repositories[REPO]
    for path in (pocket_pair().text, pocket_pair().mmproj):
        assert (repo / path.name).read_bytes() == path.read_bytes()
    card = (repo / "README.md").read_text()
    head = head_of(card)
    assert (head["base_model"], head["base_model_relation"], head["quantized_by"]) == (
        "some-org/pocket",
        "quantized",
        "me",
    )
    assert "name no licence" in err
    assert REPO in out


def test_what_was_pushed_can_be_pulled_and_run(hub, push, models, tmp_path):
    assert push(models, REPO)[0] == 0
    card = (hub.repositories[REPO] / "README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("pyvllama run")).split()[1:3]
    done = hub_server.run_program(hub, tmp_path, *command, "Hello", "--json", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "pocket-vllama"


def test_a_card_that_is_there_is_kept(hub, push, models):
    assert push(models, REPO)[0] == 0
    readme = hub.repositories[REPO] / "README.md"
    readme.write_text("mine")
    status, _, err = push(models, REPO)
    assert status == 0
    assert readme.read_text() == "mine"
    assert "--overwrite-card" in err
    assert push(models, REPO, "--overwrite-card")[0] == 0
    assert readme.read_text().startswith("---\n")
    assert [("README.md" in commit) for commit in hub.commits] == [True, False, True]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_TOKEN": "hf_reader"}, "does not let you write"),
        ({"HF_TOKEN": ""}, "log in"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses(hub, push, models, environment, words):
    status, out, err = push(models, REPO, **environment)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert hub.commits == []


# --- without a hub ---


def test_a_dry_run_prints_the_card_and_asks_nobody(cli, models, tmp_path):
    names = {"text": TEXT, "mmproj": MMPROJ}
    figures = {"n_tokens": 10, "kld_mean": 0.5, "kld_median": 0.4, "kld_p99": 2, "same_top": 0.9, "ppl_ratio": 1.1}
    evaluation = {"model": names, "reference": names, "images": figures, "texts": None}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    result = cli("push", models, REPO, "--dry-run", "--eval", tmp_path / "eval.json")
    assert result.exit_code == 0, result.output
    assert "| pictures | 10 | 0.5000 | 0.4000 | 2.0000 | 90.00% | 1.1000 |" in result.stdout
    assert TEXT in result.stderr
    assert f"Made with pyvllama {pyvllama.__version__}." in result.stdout


def test_refusals(cli, models, tmp_path, pair):
    assert_refused(cli("push", models, "no-slash"), "'no-slash' is no name of a repository")
    assert_refused(cli("push", models, REPO, "--base-model", "/home/me/x", "--dry-run"), "--base-model")
    assert_refused(cli("push", "nowhere", REPO, "--dry-run"), "nowhere: no model of that name is kept")
    (tmp_path / "empty").mkdir()
    assert_refused(cli("push", tmp_path / "empty", REPO, "--dry-run"), "no text model")
    (models / MMPROJ).unlink()
    assert_refused(cli("push", models, REPO, "--dry-run"), "no mmproj")
    (models / "mmproj-x.gguf").write_bytes(b"GGUF")
    assert_refused(cli("push", models, REPO, "--dry-run"), r"mmproj-x\.gguf")
    for text in ("[1, 2]", "{", '{"nothing": "here"}'):
        (tmp_path / "eval.json").write_text(text)
        assert_refused(cli("push", pair.text, REPO, "--dry-run", "--eval", tmp_path / "eval.json"), "eval")
