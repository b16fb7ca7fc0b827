"""Damaged and malicious GGUF files end in a FormatError that names the file, in both readers, and never in a crash."""

from pathlib import Path

import gguf_bytes
import pytest
from evil_containers import CONTAINERS
from evil_mmprojs import MMPROJS
from verdicts import damage, verdicts

N_DAMAGED = 200


@pytest.fixture(scope="session")
def good_mmproj(tiny_pair) -> Path:
    return tiny_pair("two_tiles").mmproj


@pytest.fixture(scope="module")
def evil_files(good_mmproj, module_path) -> dict[str, Path]:
    paths = {}
    for name, maker in (CONTAINERS | MMPROJS).items():
        parts = gguf_bytes.read(good_mmproj)
        raw = maker(parts)
        paths[name] = module_path / f"{name}.gguf"
        paths[name].write_bytes(parts.to_bytes() if raw is None else raw)
    return paths


@pytest.fixture(scope="module")
def opened_as_mmproj(evil_files):
    return verdicts("mmproj", list(evil_files.values()))


@pytest.fixture(scope="module")
def opened_as_directory(evil_files):
    return verdicts("directory", [evil_files[name] for name in CONTAINERS])


def test_taken_apart_and_put_together_it_opens(good_mmproj, tmp_path):
    copy = gguf_bytes.rewrite(good_mmproj, tmp_path / "copy.gguf", lambda _: None)
    for kind in ("mmproj", "directory"):
        assert verdicts(kind, [copy])["copy"]["error"] is None


@pytest.mark.parametrize("name", CONTAINERS | MMPROJS)
def test_mmproj_is_refused(opened_as_mmproj, name):
    verdict = opened_as_mmproj[name]
    assert verdict["error"] == "FormatError", verdict
    assert f"{name}.gguf" in verdict["message"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_directory_is_refused(opened_as_directory, name):
    verdict = opened_as_directory[name]
    assert verdict["error"] == "FormatError", verdict
    assert f"{name}.gguf" in verdict["message"]


def test_random_damage_ends_no_process(good_mmproj, tmp_path):
    """Bytes of the header changed at random: refused, or harmless, in both readers; what opens also encodes."""
    paths = damage(good_mmproj, tmp_path, N_DAMAGED, seed=7)
    for kind in ("directory", "encode"):
        found = verdicts(kind, paths)
        wrong = {name: v for name, v in found.items() if v["error"] not in {None, "FormatError"}}
        assert not wrong, wrong
        assert sum(v["error"] is not None for v in found.values()) > N_DAMAGED // 4


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "without_clip_vision_image_size": ["clip.vision.image_size"],
        "image_size_is_a_string": ["clip.vision.image_size"],
        "missing_tensor": ["xattn.blk.3.attn_q.weight"],
        "unknown_tensor": ["v.blk.0.attn_q.bias"],
        "transposed_tensor": ["xattn.blk.3.ffn_up.weight", "128", "160"],
        "another_projector": ["pixtral", "mllama"],
        "cross_layer_before_all_others": ["0"],
        "truncated_in_the_data": ["truncated"],
        "format_version_of_the_future": ["2", "1"],
    }.items(),
)
def test_message_names_what_is_wrong(opened_as_mmproj, name, words):
    for word in words:
        assert word in opened_as_mmproj[name]["message"]
