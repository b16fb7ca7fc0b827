"""What the command line does with bad input: exit code 2, nothing on stdout, one line that says what is wrong."""

import re

from click.testing import Result

EXIT_ERROR = 2


def assert_refused(result: Result, *patterns: str) -> str:
    """Check it and return the line without its `Error: `. A line of notes ("No model named...") may stand before it."""
    assert result.exit_code == EXIT_ERROR, (result.exit_code, result.output)
    assert result.stdout == ""
    *notes, line = result.stderr.splitlines()
    assert line.startswith("Error: "), result.stderr
    assert all(note.startswith("No model named") for note in notes), result.stderr
    for pattern in patterns:
        assert re.search(pattern, line), (pattern, line)
    return line.removeprefix("Error: ")


def assert_misused(result: Result, *patterns: str) -> None:
    """Click's own refusal: usage, a hint at --help, the error."""
    assert result.exit_code == EXIT_ERROR, (result.exit_code, result.output)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Usage: ")
    assert "--help" in lines[1]
    assert lines[-1].startswith("Error: ")
    for pattern in patterns:
        assert re.search(pattern, lines[-1]), (pattern, lines[-1])
