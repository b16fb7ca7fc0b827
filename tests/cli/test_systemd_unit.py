"""The systemd unit that stands in the README."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(UNIT,) = re.findall(r"```ini\n(\[Unit\].*?)```", README, re.DOTALL)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path):
    path = tmp_path / "pyvllama.service"
    path.write_text(UNIT)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_command_is_one_of_ours(cli, tmp_path):
    """It gets as far as the model, which is not there."""
    (tmp_path / "keys").write_text("a-key\n")
    command = re.search(r"^ExecStart=/usr/bin/env pyvllama (.*)$", UNIT, re.MULTILINE)[1]
    result = cli(*command.replace("%d", str(tmp_path)).split())
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: /srv/models: ")
