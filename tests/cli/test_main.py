"""The program as a whole: help, version, exit codes, log."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from refusals import EXIT_ERROR, assert_misused

from pyvllama import __version__, errors
from pyvllama.cli.main import main

COMMANDS = sorted(main.commands)


def test_the_commands():
    names = "bench cache caption convert doctor eval export imatrix list pull push quantize rm run serve show"
    assert names.split() == COMMANDS


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example(cli, command, flag):
    result = cli(*filter(None, [command]), flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")
    examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("pyvllama ")]
    assert any(line.startswith(f"pyvllama {command}") for line in examples), result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.opts}"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_examples_exist(cli, command):
    known = {name for parameter in main.commands[command].params for name in parameter.opts}
    for line in cli(command, "--help").stdout.splitlines():
        if line.strip().startswith("pyvllama "):
            assert {word for word in line.split() if word.startswith("-")} <= known, line


def test_version(cli):
    assert cli("--version").stdout == f"pyvllama, version {__version__}\n"


def test_no_command_shows_the_help(cli):
    result = cli()
    assert result.exit_code == EXIT_ERROR
    assert "Usage: " in result.output
    assert all(command in result.output for command in COMMANDS)


def test_an_unknown_command(cli):
    assert_misused(cli("chat"), "No such command 'chat'")


def test_log_only_when_asked_for(monkeypatch):
    """Each in a process of its own would be truer; the root logger is put back instead."""
    root = logging.getLogger()
    for verbose in (False, True):
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(root, "level", logging.WARNING)
        result = CliRunner().invoke(main, [*["-v"] * verbose, "run", "--no-timings", "Hello!"])
        lines = [line for line in result.stderr.splitlines() if line.startswith("pyvllama.llama_cpp: ")]
        assert bool(lines) == verbose
        assert result.stdout == "Hello! Please show me an image.\n"


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "VllamaError"])
def test_every_error_is_one_line_and_code_2(monkeypatch, name):
    @click.command("fail")
    def fail():
        raise getattr(errors, name)("what: where, and [bold]what[/bold] to do " + "about it " * 30)

    monkeypatch.setitem(main.commands, "fail", fail)
    result = CliRunner().invoke(main, ["fail"])
    assert (result.exit_code, result.stdout) == (EXIT_ERROR, "")
    line = f"Error: what: where, and [bold]what[/bold] to do {'about it ' * 30}"
    assert result.stderr.rstrip() == line.rstrip()  # nothing wrapped, nothing taken for markup


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(("arguments", "code"), [(["list"], 0), (["show", "/gone"], EXIT_ERROR)])
def test_notes_that_find_no_room_stop_nothing(arguments, code, tmp_path):
    command = [sys.executable, "-m", "pyvllama.cli.main", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stderr=full, env=os.environ | {"PYVLLAMA_CACHE": str(tmp_path)}, check=False)
    assert done.returncode == code


def test_an_error_of_ours_that_nobody_expects_keeps_its_traceback(monkeypatch):
    """A bug must not look like a user's mistake."""

    @click.command("fail")
    def fail():
        raise ZeroDivisionError

    monkeypatch.setitem(main.commands, "fail", fail)
    result = CliRunner().invoke(main, ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_is_130(monkeypatch):
    @click.command("fail")
    def fail():
        raise KeyboardInterrupt

    monkeypatch.setitem(main.commands, "fail", fail)
    result = CliRunner().invoke(main, ["fail"])
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr
