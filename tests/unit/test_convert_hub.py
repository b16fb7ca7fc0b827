"""Hub ids as sources: against a hub of our own, through the command line, as a user has it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import meta_files
import pytest

from pyvllama.conversion import hub as hub_module
from pyvllama.conversion.source import find_source
from pyvllama.errors import ConfigError, ModelNotFound

TYPES = ("-q", "f32", "--mmproj-type", "f32")


@pytest.fixture
def hub():
    with hub_server.serve() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    """run(*arguments of `pyvllama convert`, **environment) -> (exit status, stderr)"""

    def call(*arguments, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        env = clean | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "pyvllama.cli.main", "convert", *arguments]
        done = subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout + done.stderr

    return call


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files(out):
    return sorted(p.name for p in out.iterdir()) if out.is_dir() else []


def test_download_convert_and_again_offline(hub, run, out, tiny_checkpoint, tmp_path):
    repo = hub.repositories["some-org/Tiny-Vision.v1"] = shutil.copytree(tiny_checkpoint("small"), tmp_path / "repo")
    (repo / "original").mkdir()
    for unwanted in ("original/consolidated.00.pth", "pytorch_model.bin", "LICENSE.txt"):
        (repo / unwanted).write_bytes(b"not needed")
    status, output = run("some-org/Tiny-Vision.v1", "-o", str(out), *TYPES)
    assert status == 0, output
    assert files(out) == ["Tiny-Vision.v1-F32.gguf", "mmproj-Tiny-Vision.v1-F32.gguf"]
    assert not [r for r in hub.requests if "original" in r or ".bin" in r or "LICENSE" in r]

    hub.requests.clear()
    status, output = run("some-org/Tiny-Vision.v1", "-o", str(tmp_path / "again"), *TYPES, HF_HUB_OFFLINE="1")
    assert status == 0, output
    assert hub.requests == []
    for name in files(out):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_metas_form_on_the_hub(hub, run, out, tmp_path):
    hub.repositories["meta/tiny"] = meta_files.write_meta(tmp_path / "repo")
    status, output = run("meta/tiny", "-o", str(out), "--revision", "v1", *TYPES)
    assert status == 0, output
    assert files(out) == ["mmproj-tiny-F32.gguf", "tiny-F32.gguf"]
    assert any("/v1" in r for r in hub.requests)


def test_gated(hub, run, out, tiny_checkpoint):
    hub.repositories["meta-llama/Gated"] = tiny_checkpoint("small")
    hub.gated.add("meta-llama/Gated")
    hub.tokens.add("hf_right")
    for environment in ({}, {"HF_TOKEN": "hf_wrong"}):
        status, output = run("meta-llama/Gated", "-o", str(out), *TYPES, **environment)
        assert status != 0
        assert "accept its licence at https://huggingface.co/meta-llama/Gated" in output
        assert "hf auth login" in output
        assert "Traceback" not in output
    assert files(out) == []
    status, output = run("meta-llama/Gated", "-o", str(out), *TYPES, HF_TOKEN="hf_right")
    assert status == 0, output


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("nobody/nothing",), {}, "nobody/nothing is neither a local directory nor a repository"),
        (("some-org/tiny", "--revision", "v9"), {}, "some-org/tiny has no revision v9"),
        (("some-org/tiny",), {"HF_HUB_OFFLINE": "1"}, "not (wholly) in the Hub's cache"),
        (("some-org/tiny",), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (("some-org/a--b",), {}, "could not be downloaded"),  # the client takes no such name
        (("some-org/empty",), {}, "some-org/empty holds neither config.json nor params.json"),
    ],
)
def test_what_cannot_be_had(arguments, environment, message, hub, run, out, tiny_checkpoint, tmp_path):
    hub.repositories["some-org/tiny"] = tiny_checkpoint("small")
    hub.repositories["some-org/empty"] = tmp_path / "empty"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing here")
    status, output = run(*arguments, "-o", str(out), *TYPES, **environment)
    assert status != 0
    assert message in output
    assert "Traceback" not in output
    assert files(out) == []


def test_a_cache_made_by_hand(run, out, tiny_checkpoint, tmp_path):
    """The cache's published layout: refs/main names the commit, snapshots/COMMIT holds the files."""
    repo = tmp_path / "hf" / "hub" / "models--some-org--by-hand"
    shutil.copytree(tiny_checkpoint("small"), repo / "snapshots" / hub_server.COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(hub_server.COMMIT)
    status, output = run("some-org/by-hand", "-o", str(out), *TYPES, HF_HUB_OFFLINE="1")
    assert status == 0, output
    assert files(out) == ["by-hand-F32.gguf", "mmproj-by-hand-F32.gguf"]


def test_what_is_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(repo_id, revision, *, has_base):
        assert not has_base
        asked.append((repo_id, revision))
        return tmp_path

    monkeypatch.setattr("pyvllama.conversion.source.download", download)
    assert find_source("org/Name-1.5_x", revision="abc").name == "Name-1.5_x"
    assert asked == [("org/Name-1.5_x", "abc")]
    (tmp_path / "org" / "model").mkdir(parents=True)
    paths = ["org/model", "./org/other", "/org/name", "../org/name", "name", "a/b/c", "org/", "~/x", "org\\name"]
    for path in paths:  # there, or not of that form
        assert find_source(path).path == Path(path)
    assert len(asked) == 1
    with pytest.raises(ModelNotFound, match="name is empty"):
        find_source("")
    with pytest.raises(ConfigError, match=r"revision = 'main': org/model is no repository"):
        find_source("org/model", revision="main")


def test_another_architecture_is_refused_before_its_weights_are_fetched(hub, run, out, tmp_path):
    repo = hub.repositories["some-org/other"] = tmp_path / "repo"
    repo.mkdir()
    (repo / "config.json").write_text('{"model_type": "llama"}')
    (repo / "model.safetensors").write_bytes(bytes(100))
    status, output = run("some-org/other", "-o", str(out), *TYPES)
    assert status != 0
    assert "model_type is 'llama', not 'mllama'" in output
    assert not [r for r in hub.requests if "safetensors" in r]


def test_a_download_goes_on_in_the_hubs_own_cache(monkeypatch, tmp_path):
    """Resuming is the Hub client's: we must hand it no directory of ours and not force anything."""
    import huggingface_hub

    given = []

    def snapshot_download(repo_id, **options):
        given.append({"repo_id": repo_id} | options)
        return str(tmp_path)

    (tmp_path / "params.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub_module.download("org/name", "v2") == tmp_path
    for options in given:
        assert (options["repo_id"], options["revision"]) == ("org/name", "v2")
        assert not options.keys() & {"force_download", "local_dir", "cache_dir", "token"}
    assert "consolidated*.pth" not in given[0]["allow_patterns"]
    assert "consolidated*.pth" in given[1]["allow_patterns"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        ConfigError, match=f"^{re.escape(str(tmp_path))}/hub cannot be written: the disk is full; .* HF_"
    ):
        hub_module.download("org/name")
