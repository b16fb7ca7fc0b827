"""`pyvllama serve`: as a program, from its first line to its end."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from pyvllama.cli import serve as module
from pyvllama.cli.main import main
from pyvllama.locate import pocket_pair

EXIT_ERROR = 2


class Program:
    """`pyvllama serve` with its stderr, line by line."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "pyvllama.cli.main", "serve", "-t", "1", "-c", "512", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.lines = []

    def until(self, pattern):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError("".join(self.lines))

    def wait_ready(self, **options):
        self.url = self.until(r"Listening at (\S+)")[1].replace("localhost", "127.0.0.1")
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + "/health", **options).status_code == 200:
                    return self.url
            time.sleep(0.1)
        raise AssertionError("it never became ready")

    def end(self, sig):
        self.process.send_signal(sig)
        code = self.process.wait(20)
        self.lines += self.process.stderr.readlines()
        return code


@pytest.fixture
def serve():
    programs = []

    def start(*arguments, **environment):
        programs.append(Program(*arguments, **environment))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.wait()
        program.process.stderr.close()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_from_start_to_end(serve, sig):
    program = serve("--port", 0, "--log-format", "json")
    url = program.wait_ready()
    assert httpx.get(url + "/v1/nothing").status_code == 404
    assert program.end(sig) == 0, program.lines
    said = "".join(program.lines)
    assert "bundled pocket model" in program.lines[0]
    assert "Try: curl http" in said and '"path": "/v1/nothing"' in said
    assert "Traceback" not in said and "Warning" not in said


def test_keys_of_the_environment_and_of_a_file(serve, tmp_path):
    (tmp_path / "keys").write_text("of-the-file\n")
    program = serve("--port", 0, "--api-key-file", tmp_path / "keys", PYVLLAMA_API_KEY="of-env another")
    url = program.wait_ready()
    for key in ("of-env", "another", "of-the-file"):
        assert httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert httpx.get(url + "/metrics").status_code == 401
    program.end(signal.SIGTERM)
    assert not any("of-the-file" in line or "of-env" in line for line in program.lines)


def test_a_model_that_cannot_be_loaded(serve, tmp_path):
    """Its headers are right, so that it shows only when the server runs already."""
    for path in (pocket_pair().text, pocket_pair().mmproj):
        shutil.copy(path, tmp_path)
    text = tmp_path / pocket_pair().text.name
    with text.open("r+b") as file:
        file.truncate(text.stat().st_size - 4096)
    program = serve(tmp_path, "--port", 0)
    assert program.process.wait(30) == EXIT_ERROR
    said = program.process.stderr.read()
    assert "Error: " in said and text.name in said and "Traceback" not in said


@pytest.fixture
def taken_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_port_that_is_taken(cli, taken_port):
    result = cli("serve", "--port", taken_port)
    assert result.exit_code == EXIT_ERROR
    assert f"cannot listen at 127.0.0.1 port {taken_port}: Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/model.gguf"], "no such file"),
        (["--host", "a b"], "host must be"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--api-key-file", "/nowhere"], "cannot be read"),
        (["--api-key", "a b"], "API key 1 must be"),
        (["--cors-origin", "example.com"], "is no origin"),
        (["--media-path", "/nowhere"], "no directory"),
        (["--keep-alive", "5 minutes"], "is no duration"),
        (["--grace", "-1"], "grace_s must be"),
    ],
)
def test_what_is_refused_before_it_listens(cli, arguments, message):
    result = cli("serve", *arguments)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert "Listening" not in result.stderr


def settings(*arguments):
    """What the server would be told."""
    with main.commands["serve"].make_context("serve", [*arguments]) as context:
        given = dict(context.params)
        return module._settings(given.pop("model"), given)


def test_settings_of_the_command_line():
    found = settings("--ollama", "--keep-alive", "5m", "--timeout", "90", "--grace", "0", "--max-body", "1", "-np", "2")
    assert (found.port, found.manage_models) == (11434, True)
    assert (found.keep_alive_s, found.deadline_s, found.grace_s) == (300.0, 90.0, 0.0)
    assert (found.max_body_bytes, found.parallel) == (1 << 20, 2)
    plain = settings()
    assert (plain.port, plain.keep_alive_s, plain.deadline_s, plain.n_ctx) == (8080, None, None, 8192)
    assert settings("--ollama", "--port", "9").port == 9
    assert (plain.grammars, settings("--no-grammars").grammars) == (True, False)
    assert plain.model == str(pocket_pair().text)


def test_defaults_are_those_of_settings():
    """One default each, though it stands in two places."""
    from pyvllama.server.settings import Settings

    same = {"model", "mmproj"}  # found already
    found, default = settings(), Settings()
    differing = {f for f in Settings.__dataclass_fields__ if getattr(found, f) != getattr(default, f)}
    assert differing <= same


def test_a_warning_to_those_who_open_the_door():
    assert "everybody" in module.warning(settings("--host", "0.0.0.0"))
    assert module.warning(settings("--host", "0.0.0.0", "--api-key", "a")) is None
    assert module.warning(settings("--host", "::1")) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://localhost:80"), ("0.0.0.0", "http://localhost:80"), ("::1", "http://[::1]:80"),
     ("[::1]", "http://[::1]:80"), ("box.example", "http://box.example:80")],
)  # fmt: skip
def test_the_greeting(host, url):
    line = module.greeting(host, 80, has_key=False)
    assert line.startswith(f"Listening at {url} ") and line.endswith(f"curl {url}/v1/models")
    assert "Bearer" in module.greeting(host, 80, has_key=True)
