"""Ctrl-C at any moment ends the call and leaves the model usable; in the command line it ends the program with 130."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from invariants import max_error
from talk import last_logits, user

from pyvllama.errors import VllamaError

# Not llm.py: it holds a lock by `with`, whose exit a trace function can skip and a signal cannot.
TRACED = ("session.py", "context.py", "generation.py", "draft.py", "prompt_lookup.py", "draft_model.py")
WORKER = Path(__file__).parent / "interrupted.py"
# The command line with a model that never ends its answer by itself.
ENDLESS = (
    "from pyvllama.tokenizer import Tokenizer; Tokenizer.eog = frozenset()\n"
    "from pyvllama.cli.main import main; main(prog_name='pyvllama')"
)
EXIT_INTERRUPTED = 130


@pytest.mark.parametrize("what", ["generation", "stream", "prompt", "encoding", "turns"])
def test_the_session_is_usable_afterwards(tiny_pair, what):
    pair = tiny_pair("small")
    run = subprocess.run(
        [sys.executable, str(WORKER), str(pair.text), str(pair.mmproj), what],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    word, n = run.stdout.split()
    assert word == "well"
    assert int(n) >= 10


def interrupted_at(line: int, call) -> str | None:
    """Make the call and raise KeyboardInterrupt before its n-th line of Python; where that was, or None: it ended."""
    n, where = 0, None

    def on_line(frame, event, _):
        nonlocal n, where
        n += event == "line"
        if n == line and where is None:
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            raise KeyboardInterrupt
        return on_line

    def on_call(frame, _event, _arg):
        code = frame.f_code
        traced = Path(code.co_filename).name in TRACED and code.co_name not in ("close", "__del__", "<lambda>")
        return on_line if traced and Path(code.co_filename).parent.name == "pyvllama" else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        call()
    except KeyboardInterrupt:
        return where
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("draft", [None, "lookup", "model"])
def test_no_line_is_the_wrong_one_for_ctrl_c(load_tiny, tiny_pair, draft):
    """A signal can arrive between any two lines, most of all between decoding rows and noting that they are there."""
    llm = load_tiny(draft=tiny_pair("small").text if draft == "model" else draft)
    picture = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    messages, other = [user(picture, "Hello")], [user("Something else")]
    want = llm.logits(messages)[-1]
    line, wrong = 0, []
    while True:
        line += 1
        llm.logits(other)
        where = interrupted_at(line, lambda: llm.chat(messages, max_tokens=4, temperature=0))
        if where is None:
            break
        try:
            llm.chat(messages, max_tokens=1, temperature=0)
            if max_error(last_logits(llm), want) > 1e-5:
                wrong.append(f"{where}: other logits")
        except VllamaError as e:
            wrong.append(f"{where}: {e}")
    assert line > 200
    assert not wrong


def test_the_program_ends_with_130(tiny_pair):
    pair = tiny_pair("small")
    program = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "run", str(pair.text), "-c", "100000", "--seed", "1", "Hello"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with program:
        assert program.stdout.read(20)  # in the middle of its answer
        program.send_signal(signal.SIGINT)
        program.stdout.read()
        error = program.stderr.read().decode()
    assert program.returncode == EXIT_INTERRUPTED, error
    assert "Traceback" not in error
