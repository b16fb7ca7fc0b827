"""`pyvllama doctor`."""

import json
import os

import pytest
from refusals import assert_misused

from pyvllama import doctor
from pyvllama.cli import fit

EXIT_ERROR, EXIT_PROBLEM = 2, 1


def test_all_is_well(cli, monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: 64 << 30)
    result = cli("doctor")
    assert result.exit_code == 0
    assert "llama-cpp-python" in result.stdout and result.stdout.endswith("All is well.\n")


def test_a_model_that_fits(cli, pair, monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: 64 << 30)
    result = cli("doctor", pair.text, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["problems"] == [] and said["model"]["fits"] is True
    assert said["model"]["need_total"] == sum(said["model"]["need"].values()) > pair.text.stat().st_size
    assert {f["name"] for f in said["findings"]} >= {"pyvllama", "llama-cpp-python", "processor", "devices", "cache"}


def test_a_model_that_does_not_fit(cli, pair, monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: 900 << 20)
    result = cli("doctor", pair.text, "--ctx-size", "1000000")
    assert result.exit_code == EXIT_PROBLEM
    assert f"Problem: {pair.text.name} needs " in result.stdout and "try --" in result.stdout
    monkeypatch.setattr(fit, "available_memory", lambda: 1 << 20)
    result = cli("doctor", pair.text)
    assert result.exit_code == EXIT_PROBLEM
    assert "it fits with no setting" in result.stdout


def test_options_of_a_model_without_one(cli):
    assert_misused(cli("doctor", "-c", "512", "--mmproj", "x"), "--mmproj, --ctx-size mean nothing without MODEL")


def test_a_model_that_is_none(cli, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert cli("doctor", tmp_path / "a.gguf").exit_code == EXIT_ERROR
    assert cli("doctor", "/nowhere.gguf").exit_code == EXIT_ERROR


def finding(findings, name):
    (found,) = [f for f in findings if f.name == name]
    return found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in finding(doctor.examine(tmp_path / "cache"), "cache").problem


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("")
    assert "cannot be written" in finding(doctor.examine(tmp_path / "cache"), "cache").problem


def test_little_disk(tmp_path, monkeypatch):
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    found = finding(doctor.examine(tmp_path / "cache" / "of" / "models"), "cache")
    assert found.problem is None and "1.0 GiB free" in found.value and "8 GiB" in found.hint


def test_a_processor_that_can_more(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("model name\t: Test CPU\nflags\t\t: fpu avx avx2 amx_int8\n")
    monkeypatch.setattr(doctor.llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX = 1 | ")
    found = finding(doctor.examine(cpuinfo=tmp_path / "cpuinfo"), "processor")
    assert found.value.startswith("Test CPU, ")
    assert "AVX2, AMX_INT8, which this build" in found.hint and "AVX," not in found.hint


def test_without_cpuinfo(tmp_path):
    assert finding(doctor.examine(cpuinfo=tmp_path / "none"), "processor").value


def test_a_system_that_does_not_tell_its_memory(cli, pair, monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: None)
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    result = cli("doctor", pair.text)
    assert result.exit_code == 0 and "unknown on this system" in result.stdout
