"""A test that hangs ends its run, with what every thread was doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import time_limit
time_limit.LIMIT_S = 3.0
def pytest_configure(config):
    config.pluginmanager.register(time_limit.TimeLimit(config), "time-limit")
"""
HANGING_CALL = """
import time
def test_that_hangs():
    time.sleep(90)
"""
HANGING_TEARDOWN = """
import time, pytest
@pytest.fixture
def slow():
    yield
    time.sleep(90)
def test_that_hangs(slow):
    assert False
"""


@pytest.mark.parametrize("source", [HANGING_CALL, HANGING_TEARDOWN], ids=["call", "teardown after a failure"])
def test_it_ends(tmp_path, source):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(source)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path, capture_output=True, text=True, timeout=80, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "Timeout" in run.stderr and "test_hanging.py" in run.stderr
