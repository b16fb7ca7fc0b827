"""From a name to the two files of a pair: by looking at file names only, nothing is opened."""

import os
import platform

import pytest

from pyvllama.errors import ModelNotFound
from pyvllama.locate import find_mmproj, locate, pocket_pair, pocket_picture
from pyvllama.types import Pair

BASE = "Llama-3.2-11B-Vision-Instruct"


@pytest.fixture
def folder(tmp_path):
    """folder(*names) -> a directory with files of these names."""

    def make(*names):
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return make


def test_pair_in_a_directory(folder):
    d = folder(f"{BASE}-Q4_K_M.gguf", f"mmproj-{BASE}-Q8_0.gguf", "README.md")
    assert locate(d) == Pair(d / f"{BASE}-Q4_K_M.gguf", d / f"mmproj-{BASE}-Q8_0.gguf")
    assert locate(str(d)) == locate(d)


def test_a_text_file_finds_the_mmproj_beside_it(folder):
    d = folder(f"{BASE}-F16.gguf", f"mmproj-{BASE}-F32.gguf")
    assert locate(d / f"{BASE}-F16.gguf").mmproj == d / f"mmproj-{BASE}-F32.gguf"


def test_one_mmproj_of_another_name_is_taken(folder):
    """Grafting: eyes for a text model that has none of its own."""
    d = folder("Llama-3.1-8B-Q4_K_M.gguf", f"mmproj-{BASE}-Q8_0.gguf")
    assert locate(d / "Llama-3.1-8B-Q4_K_M.gguf").mmproj.name == f"mmproj-{BASE}-Q8_0.gguf"


@pytest.mark.parametrize(
    "text", ["b-Q4_K_M", "b-q8_0", "B-BF16", "b.F32", "b-IQ4_XS", "b-IQ2_XXS", "b-TQ1_0", "b-MXFP4", "b-Q4_K"]
)
def test_of_several_the_one_of_the_same_base_name(folder, text):
    d = folder(f"{text}.gguf", "mmproj-a-F16.gguf", "mmproj-b-F16.gguf", "mmproj-bc-F16.gguf")
    assert find_mmproj(d / f"{text}.gguf").name == "mmproj-b-F16.gguf"


def test_a_type_in_the_middle_of_a_name_belongs_to_the_name(folder):
    d = folder("a-Q4_0-tuned-Q8_0.gguf", "mmproj-a-Q4_0-tuned-F16.gguf", "mmproj-a-F16.gguf")
    assert find_mmproj(d / "a-Q4_0-tuned-Q8_0.gguf").name == "mmproj-a-Q4_0-tuned-F16.gguf"


def test_a_named_mmproj_wins(folder):
    d = folder("a-F16.gguf", "mmproj-a-F16.gguf", "eyes.gguf")
    assert locate(d / "a-F16.gguf", d / "eyes.gguf").mmproj == d / "eyes.gguf"
    assert locate(d, str(d / "eyes.gguf")) == Pair(d / "a-F16.gguf", d / "eyes.gguf")


def test_a_named_mmproj_is_no_text_file_however_its_path_is_written(folder, monkeypatch):
    d = folder("a-F16.gguf", "eyes.gguf")
    monkeypatch.chdir(d.parent)
    assert locate(d, os.path.join(d.name, "eyes.gguf")).text == d / "a-F16.gguf"  # noqa: PTH118  a relative path


def test_home_is_expanded(folder, monkeypatch):
    d = folder("a-F16.gguf", "mmproj-a-F16.gguf")
    monkeypatch.setenv("HOME", str(d))
    assert locate("~/a-F16.gguf", "~/mmproj-a-F16.gguf") == locate(d)


def test_nothing_named_is_the_bundled_model(tmp_path):
    pair = locate(None)
    assert pair == pocket_pair()
    assert pair.text.is_file()
    assert pair.mmproj.is_file()
    assert pocket_picture().is_file()
    (tmp_path / "other.gguf").touch()
    assert locate(None, tmp_path / "other.gguf") == Pair(pair.text, tmp_path / "other.gguf")


# --- what is not there: what, and what to do ---


@pytest.mark.parametrize(
    ("files", "model", "words"),
    [
        ([], "gone.gguf", "gone.gguf: no such file"),
        ([], "", "no GGUF files"),
        (["config.json"], "", "pyvllama convert .* -o DIR"),
        (["a-F16.gguf"], "a-F16.gguf", "--mmproj.*pyvllama convert"),
        (["a-F16.gguf"], "", "no mmproj-"),
        (["mmproj-a-F16.gguf"], "", "an mmproj in it, but no text model.*--mmproj"),
        (["a-F16.gguf", "a-Q8_0.gguf", "mmproj-a-F16.gguf"], "", r"a-F16\.gguf, a-Q8_0\.gguf.*name one"),
        (["a-F16.gguf", "mmproj-a-F16.gguf", "mmproj-a-Q8_0.gguf"], "", r"F16\.gguf, mmproj-a-Q8_0.*--mmproj"),
        (["c-F16.gguf", "mmproj-a-F16.gguf", "mmproj-b-F16.gguf"], "", r"several mmproj.*--mmproj"),
    ],
)
def test_not_found(folder, files, model, words):
    with pytest.raises(ModelNotFound, match=words):
        locate(folder(*files) / model)


@pytest.mark.parametrize("mmproj", ["gone.gguf", "."])
def test_a_named_mmproj_that_is_no_file(folder, mmproj):
    d = folder("a-F16.gguf", "mmproj-a-F16.gguf")
    for model in (d, d / "a-F16.gguf", None, d / "gone"):
        with pytest.raises(ModelNotFound, match="no such mmproj file"):
            locate(model, d / mmproj)


def test_lora_files_are_no_models(folder):
    where = folder("a-F16.gguf", "mmproj-a-F16.gguf", "my-adapter-F16-LoRA.gguf")
    assert locate(where).text.name == "a-F16.gguf"


def test_importance_matrices_are_no_models(tmp_path):
    for name in ("A-BF16.gguf", "mmproj-A-BF16.gguf", "imatrix-A.gguf", "imatrix-mmproj-A.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    pair = locate(tmp_path)
    assert (pair.text.name, pair.mmproj.name) == ("A-BF16.gguf", "mmproj-A-BF16.gguf")


@pytest.mark.parametrize("name", ["", "x" * 300, "x\0y", "~nobody-of-that-name/a.gguf"], ids=lambda n: repr(n[:12]))
def test_names_that_no_file_can_have(name):
    with pytest.raises(ModelNotFound) as caught:
        locate(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(ModelNotFound):
        locate(None, name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="quantizers round differently with other compilers' FMA")
def test_the_bundled_pair_is_what_conversion_gives(pocket_pairs):
    fresh, bundled = pocket_pairs("q4_k_m", "q8_0"), pocket_pair()
    assert fresh.text.name == bundled.text.name
    assert fresh.text.read_bytes() == bundled.text.read_bytes()
    assert fresh.mmproj.name == bundled.mmproj.name
    assert fresh.mmproj.read_bytes() == bundled.mmproj.read_bytes()


def test_what_is_no_model_at_all(tmp_path):
    """A picture instead of a model, say: to be told of an mmproj would help nobody."""
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ModelNotFound, match=r"photo\.jpg: this is no GGUF file"):
        locate(tmp_path / "photo.jpg")
