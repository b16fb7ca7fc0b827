"""Ends a run that hangs: after a limit, every thread's stack on stderr and exit code 1."""

import faulthandler
import os

import pytest

LIMIT_S = 600.0
"""For each of setup, call and teardown of a test. The slowest takes 20 s, and took 171 s on a machine out of breath."""
END_S = 120.0
"""For what comes after the last test: session fixtures, the summary, threads that Python waits for at its end."""


class TimeLimit:
    """A pytest plugin.

    A thread of the interpreter's own keeps the time: it also ends code that holds the GIL or waits in the kernel.
    pytest's `faulthandler_timeout` does not do: it is lifted when a test fails, so a teardown may hang after it.

    Args:
        config: of a session whose capturing has begun.
    """

    def __init__(self, config: pytest.Config) -> None:
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            self._stderr = os.dup(2)

    def _begin(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stderr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._begin(LIMIT_S)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        self._begin(LIMIT_S)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._begin(LIMIT_S)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._begin(END_S)
