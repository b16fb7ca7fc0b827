"""`pyvllama pull`, and `run`, `show`, `list` and `rm` of what it fetched: a hub of our own, the Hub's client."""

import json
import shutil

import hub_server
import huggingface_hub
import pytest

from pyvllama.locate import pocket_pair

REPO = "somebody/Pocket-GGUF"
TEXT, MMPROJ = pocket_pair().text.name, pocket_pair().mmproj.name
HELLO = ("Hello", "--json", "--max-tokens", "2", "--temperature", "0")
OTHER = "pocket-vllama-Q8_0.gguf"


@pytest.fixture
def hub():
    with hub_server.serve() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    def call(*arguments, **environment):
        return hub_server.run_program(hub, tmp_path, *arguments, **environment)

    return call


@pytest.fixture
def repo(hub, tmp_path):
    folder = hub.repositories[REPO] = tmp_path / "repo"
    folder.mkdir()
    shutil.copy(pocket_pair().text, folder)
    shutil.copy(pocket_pair().text, folder / OTHER)
    shutil.copy(pocket_pair().mmproj, folder)
    (folder / "unwanted.bin").write_bytes(b"not needed")
    return folder


def fetched(hub):
    return [r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r]


def listed(run, **environment):
    done = run("list", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pull_list_show_run_remove(hub, run, repo):
    done = run("pull", REPO)
    assert done.returncode == 0, done.stderr
    paths = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert [p.rsplit("/", 1)[1] for p in paths] == [TEXT, MMPROJ]
    assert set(fetched(hub)) == {TEXT, MMPROJ}  # the other type was not asked for

    (item,) = listed(run)
    assert (item["name"], item["kind"], item["type"]) == (f"{REPO}:Q4_K_M", "pulled", "Q4_K_M")
    assert item["text_bytes"] == pocket_pair().text.stat().st_size
    assert item["mmproj_bytes"] == pocket_pair().mmproj.stat().st_size

    hub.requests.clear()
    shown = json.loads(run("show", item["name"], "--json").stdout)
    assert shown["name"] == "pocket-vllama"
    assert hub.requests == []
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = run("run", REPO, *HELLO, **offline)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model"] == "pocket-vllama"

    asked = run("rm", REPO)  # no terminal, so nobody says yes
    assert asked.returncode == 2
    assert "nothing was deleted" in asked.stderr
    assert len(listed(run)) == 1
    done = run("rm", REPO, "--yes")
    assert done.returncode == 0, done.stderr
    assert listed(run) == []


@pytest.mark.skipif(not hasattr(huggingface_hub.HFCacheInfo, "delete_files"), reason="an older client")
def test_removing_one_type_leaves_the_other_and_its_mmproj(run, repo, tmp_path):
    assert run("pull", REPO).returncode == 0
    assert run("pull", f"{REPO}:q8_0").returncode == 0
    assert {item["name"] for item in listed(run)} == {f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"}
    ambiguous = run("rm", REPO, "--yes")
    assert ambiguous.returncode == 2
    assert f"{REPO}:Q4_K_M or {REPO}:Q8_0" in ambiguous.stderr or f"{REPO}:Q8_0 or {REPO}:Q4_K_M" in ambiguous.stderr

    (tmp_path / "hf" / "outside.txt").write_text("not ours")
    done = run("rm", f"{REPO}:Q4_K_M", "--yes")
    assert done.returncode == 0, done.stderr
    (left,) = listed(run)
    assert left["name"] == f"{REPO}:Q8_0"
    assert (tmp_path / "hf" / "outside.txt").exists()
    assert run("show", left["name"]).returncode == 0
    assert run("rm", left["name"], "--yes").returncode == 0
    assert listed(run) == []
    assert not list((tmp_path / "hf").rglob("*.gguf"))


def test_nothing_is_left_of_a_model_with_several_mmprojs(run, repo, tmp_path):
    shutil.copy(repo / MMPROJ, repo / MMPROJ.replace("Q8_0", "F16"))
    assert run("pull", REPO).returncode == 0
    assert run("pull", REPO, "--mmproj-type", "f16").returncode == 0
    assert run("rm", REPO, "--yes").returncode == 0
    assert not list((tmp_path / "hf").rglob("*.gguf"))


def test_all_parts_of_a_split_model(hub, run, repo):
    """Names alone count here: the parts are no real files."""
    (repo / TEXT).unlink()
    (repo / OTHER).unlink()
    for i in (1, 2, 3):
        (repo / f"big-Q4_K_M-{i:05}-of-00003.gguf").write_bytes(bytes(i))
    done = run("pull", f"{REPO}:q4_k_m")
    assert done.returncode == 0, done.stderr
    assert "big-Q4_K_M-00001-of-00003.gguf" in done.stdout
    assert len([name for name in fetched(hub) if name.startswith("big-")]) == 3


def test_eyes_from_the_hub_for_a_local_text_file(run, repo, tmp_path):
    text = shutil.copy(pocket_pair().text, tmp_path)
    done = run("run", text, "--mmproj", f"{REPO}:q8_0", "Hello", "--json", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr


def test_a_mmproj_of_another_family_is_refused_before_the_text_is_fetched(hub, run, repo, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(str(repo / MMPROJ), "clip")
    writer.add_string("clip.projector_type", "ldp")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("pull", REPO)
    assert done.returncode == 2
    assert "clip.projector_type is 'ldp', not 'mllama'" in done.stderr
    assert TEXT not in fetched(hub)
    assert listed(run) == []


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("no-slash", {}, "'no-slash' is no name of a repository"),
        ("a/b:", {}, "is no name of a repository"),
        ("a/b:Q4/../x", {}, "is no name of a repository"),
        ("nobody/nothing", {}, "neither a local directory nor a repository"),
        (f"{REPO}:IQ2_XS", {}, f"no text file of type IQ2_XS in it. It has {TEXT}, {OTHER}"),
        (REPO, {"HF_HUB_OFFLINE": "1"}, "not (wholly) in the Hub's cache"),
        (REPO, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_cannot_be_had(run, repo, name, environment, words):
    done = run("pull", name, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_gated(hub, run, repo):
    hub.gated.add(REPO)
    hub.tokens.add("hf_right")
    done = run("pull", REPO)
    assert done.returncode == 2
    assert f"accept its licence at https://huggingface.co/{REPO}" in done.stderr
    assert run("pull", REPO, HF_TOKEN="hf_right").returncode == 0


# --- checkpoints on the Hub ---


def test_a_checkpoint_is_converted_once(hub, run, tiny_checkpoint, tmp_path):
    folder = hub.repositories["some-org/Tiny"] = shutil.copytree(tiny_checkpoint("small"), tmp_path / "repo")
    first = run("run", "some-org/Tiny", "-q", "f32", *HELLO)
    assert first.returncode == 0, first.stderr
    assert "Converting some-org/Tiny to F32 and Q8_0, once; it is kept in " in first.stderr
    (item,) = listed(run)
    assert (item["name"], item["kind"], item["source"]) == ("Tiny-F32", "converted", "some-org/Tiny")

    shutil.rmtree(tmp_path / "hf")  # the download is no longer needed
    for again in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.requests.clear()
        second = run("run", "some-org/Tiny", "-q", "f32", *HELLO, **again)
        assert second.returncode == 0, second.stderr
        assert json.loads(second.stdout)["text"] == json.loads(first.stdout)["text"]
        assert "Converting" not in second.stderr
        assert fetched(hub) == []
    assert json.loads(run("show", "Tiny-F32", "--json").stdout)["name"] == "Tiny"

    # GGUF files beside it: a QUANT asks for these, no QUANT for the checkpoint
    shutil.copy(pocket_pair().text, folder)
    shutil.copy(pocket_pair().mmproj, folder)
    both = run("run", "some-org/Tiny:Q4_K_M", *HELLO)
    assert json.loads(both.stdout)["model"] == "pocket-vllama"
