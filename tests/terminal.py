"""A program on a pseudo-terminal, typed at and read as a person does."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
PASTE_ON, PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"  # what prompt_toolkit sends when a prompt begins and ends
HANGS_S = 60
ALT_ENTER, CTRL_C, CTRL_D, TAB, UP = b"\x1b\r", b"\x03", b"\x04", b"\t", b"\x1b[A"
_PROGRESS = ("Looking at", "Reading")  # drawn over again, and wiped out


class Terminal:
    """`command` on a terminal of its own; with stdout=PIPE its answers go elsewhere."""

    def __init__(self, *command: str, columns: int = 160, stdout: Path | None = None, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self._set_width(columns)
        unwanted = ("TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "NO_COLOR", "COLUMNS", "LINES")
        inherited = {k: v for k, v in os.environ.items() if k not in unwanted}
        out = slave if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT)
        self.program = subprocess.Popen(
            command, stdin=slave, stdout=out, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (Ctrl-C is a signal then)
            env={**inherited, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        )  # fmt: skip
        os.close(slave)
        if stdout is not None:
            os.close(out)
        self.new = b""  # what came since the last `send`

    def resize(self, columns: int) -> None:
        """At a prompt: it is drawn anew."""
        self.new = b""
        self._set_width(columns)
        self.read_until(PASTE_ON)

    def _set_width(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def send(self, keys: bytes | str) -> None:
        self.new = b""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:  # a terminal's buffer takes 4 KiB
            readable, writable, _ = select.select([self.master], [self.master], [], HANGS_S)
            if readable:
                self.new += os.read(self.master, 65536)
            if writable:
                data = data[os.write(self.master, data[:512]) :]

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

    def ask(self, line: str | bytes) -> str:
        """Type a line and wait for the next prompt; what was printed in between, without escape sequences."""
        return shown(self.ask_raw(line))

    def ask_raw(self, line: str | bytes) -> str:
        """As `ask`, with its escape sequences."""
        return self.press((line.encode() if isinstance(line, str) else line) + b"\r")

    def press(self, keys: bytes) -> str:
        """Keys that end a prompt; what was printed until the next."""
        self.send(keys)
        self.read_until(PASTE_OFF)
        self.new = self.new.partition(PASTE_OFF)[2]
        self.read_until(PASTE_ON)
        return self.new.partition(PASTE_ON)[0].decode()

    def leave(self) -> None:
        self.send(CTRL_D)
        assert self.program.wait(HANGS_S) == 0

    def close(self) -> None:
        if self.program.poll() is None:
            os.killpg(self.program.pid, signal.SIGKILL)
        self.program.wait()
        os.close(self.master)


def shown(raw: str) -> str:
    """Lines without escape sequences, empty ones, and signs of progress."""
    lines = ESCAPES.sub("", raw).replace("\r", "\n").split("\n")
    return "\n".join(line for line in lines if line.strip() and not line.startswith(_PROGRESS))
