"""Servers for the tests of Ollama's API, and a program that serves on its own."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import ollama
import pytest
from hub_server import Hub
from shell import SMALL, Running
from shell import serving as shell_serving

from pyvllama.server.settings import Settings

NAME = "llama3.2-vision"
N_CTX = SMALL["n_ctx"]
GREEDY = {"temperature": 0}
ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."
"""To "Describe the image.", of the fixture `picture`."""
READY_S = 180


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Running]:
    """A server with the pocket model and these settings, on a real socket; what lies in caches is not seen."""
    with (
        mock.patch("pyvllama.server.model_list.inventory", return_value=[]),
        shell_serving(Settings(port=0, **{**SMALL, **settings})) as running,
    ):
        yield running


@contextlib.contextmanager
def serving_program(hub: Hub, home: Path, *arguments: object) -> Iterator[str]:
    """The address of a `pyvllama serve` with this hub for the Hub, and all caches below `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYVLLAMA_"))}
    ours = {
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "PYVLLAMA_CACHE": str(home / "cache"),
    }
    program = [sys.executable, "-m", "pyvllama.cli.main", "serve", "--port", "0", "-t", "1", "-c", str(N_CTX)]
    command = [*program, *map(str, arguments)]
    log = home / "log.txt"
    with log.open("w") as stderr, subprocess.Popen(command, env=clean | ours, stderr=stderr, text=True) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Once it is ready."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if found := re.search(r"Listening at (\S+)", log.read_text()):
            url = found[1].replace("localhost", "127.0.0.1")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    return url
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def ask(question: str, *images: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": question, "images": list(images)}


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, str]:
    """(status, words) of a call that Ollama's client sees refused."""
    with pytest.raises(ollama.ResponseError) as caught:
        found = call(*args, **kwargs)
        if kwargs.get("stream"):
            list(found)
    return caught.value.status_code, caught.value.error


def check_costs(answer: Any) -> None:
    """The last piece of an answer says what it did cost; times in nanoseconds, so parts fit into the whole."""
    assert answer.done
    assert answer.prompt_eval_count > 0
    assert answer.eval_count > 0
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(part >= 0 for part in parts)
    assert 1e5 < sum(parts) <= answer.total_duration < 60e9
    made = datetime.fromisoformat(answer.created_at.replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - made).total_seconds()) < READY_S


def n_open(server: Running) -> int:
    """Requests that have not ended."""
    return sum(loaded.served.n_open for loaded in server.app.state.pool.loaded())
