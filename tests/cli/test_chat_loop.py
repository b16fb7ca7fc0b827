"""The interactive chat of `pyvllama run`, on a terminal as a person has one."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
PASTE_ON, PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"  # what prompt_toolkit sends when a prompt begins and ends
HANGS_S = 60
ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.program = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.new = b""  # what came since the last `send`

    def read_until(self, wanted: bytes) -> None:
        end = time.monotonic() + HANGS_S
        while wanted not in self.new:
            assert time.monotonic() < end, f"{wanted!r} did not come, but {self.new!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    piece = os.read(self.master, 65536)
                except OSError:  # what Linux says when the other side is closed
                    piece = b""
                assert piece, f"ended with {self.new!r}"
                self.new += piece

    def ask(self, line: str) -> str:
        """Type a line and wait for the next prompt; what was printed in between, without escape sequences."""
        self.new = b""
        os.write(self.master, line.encode() + b"\r")
        self.read_until(PASTE_ON)
        raw = self.new.partition(PASTE_OFF)[2].partition(PASTE_ON)[0]
        printed = ESCAPES.sub("", raw.decode()).replace("\r", "\n")
        return "\n".join(part for part in printed.split("\n") if part.strip() and not part.startswith("Looking"))

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self.master)


@pytest.fixture
def terminal():
    """terminal(*options) -> `pyvllama run` with them, at its first prompt."""
    opened = []

    def open_terminal(*options, before=""):
        code = f"{before}\nfrom pyvllama.cli.main import main; main(prog_name='pyvllama')"
        opened.append(Terminal(sys.executable, "-c", code, "run", "-t", "1", *map(str, options)))
        opened[-1].read_until(PASTE_ON)
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def test_a_conversation(terminal, picture, no_picture):
    chat = terminal()
    assert b"bundled pocket model" in chat.new
    assert b"/help" in chat.new

    assert chat.ask("") == ""
    assert "Attached" in (said := chat.ask(f"/image {picture}"))
    assert "200 x 200" in said
    answer, timings = chat.ask("Describe the image.").splitlines()
    assert answer == ANSWER
    assert timings.startswith("image")

    answer, timings = chat.ask("What colour is the ring?").splitlines()
    assert answer == "The ring is yellow."
    assert timings.startswith("image cached")  # the conversation still holds it

    assert chat.ask(f"/image {no_picture}").startswith("Error: ")
    assert "notes.png" in chat.ask(f"/image {no_picture}")
    assert chat.ask("/image").startswith("Error: ")
    assert "/clear" in (said := chat.ask("/help"))
    assert "There is no" not in said
    assert chat.ask("/nonsense").startswith("There is no /nonsense.")

    assert chat.ask("/clear") == "Forgotten."
    answer, timings = chat.ask("Hello!").splitlines()
    assert answer == "Hello! Please show me an image."
    assert timings.startswith("prompt")

    os.write(chat.master, b"\x04")
    assert chat.program.wait(HANGS_S) == 0


def test_pictures_and_a_system_prompt_from_the_command_line(terminal, picture):
    chat = terminal("-i", picture, "-s", "Be brief.", "--no-timings")
    assert chat.ask("Describe the image.") == ANSWER
    os.write(chat.master, b"/exit\r")
    assert chat.program.wait(HANGS_S) == 0


def test_a_question_too_long_is_taken_back_and_its_picture_stays(terminal, picture):
    chat = terminal("-c", "256", "--no-timings")
    chat.ask(f"/image {picture}")
    assert "n_ctx" in chat.ask("many words " * 200)
    assert chat.ask("Describe the image.") == ANSWER


def test_with_context_shift_the_chat_goes_on(terminal, picture):
    chat = terminal("-c", "256", "-i", picture, "--no-timings", "--context-shift", "--max-tokens", "8")
    said = [chat.ask("Describe the image.")] + [chat.ask("What colour is the ring?") for _ in range(14)]
    notes = ["The context is full" in text for text in said]
    assert notes == sorted(notes)
    assert (notes[0], notes[-1]) == (False, True)
    assert not any("Error" in text for text in said)
    first = said[notes.index(True)]
    assert "without its oldest" in first
    assert "last turn alone" in chat.ask("many words " * 200)


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal):
    endless = "from pyvllama.tokenizer import Tokenizer; Tokenizer.eog = frozenset()"
    chat = terminal("-c", "100000", "--temperature", "1", "--no-timings", before=endless)
    chat.new = b""
    os.write(chat.master, b"Hello!\r")
    chat.read_until(PASTE_OFF)
    chat.read_until(b" ")
    time.sleep(0.2)  # somewhere in the answer
    os.killpg(chat.program.pid, signal.SIGINT)  # what the terminal does on Ctrl-C
    chat.read_until(b"Stopped.")
    chat.read_until(PASTE_ON)
    assert chat.ask("/clear") == "Forgotten."
    os.write(chat.master, b"\x04")
    assert chat.program.wait(HANGS_S) == 0
