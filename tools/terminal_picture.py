#!/usr/bin/env python3
"""Draw the README's pictures of a terminal: runs the commands for real, in tmux, and draws what the terminal shows.

Needs tmux and an installed pyvllama on PATH.

    tools/terminal_picture.py        writes tools/pictures/*.svg
"""

import re
import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "pyvllama" / "pocket"
COLUMNS, ROWS = 100, 40
# (name of the picture, title, [(what is typed, text that must appear before going on)])
SCENES = [
    (
        "run",
        "one answer",
        [('pyvllama run -i shapes.png --temperature 0 "Describe the image."', "answer ")],
    ),
    (
        "chat",
        "a chat",
        [
            ("pyvllama run --temperature 0", "Ctrl-D to leave"),
            ("/image shapes.png", "Attached"),
            ("What colour is the star?", "answer "),
            ("How many shapes are there?", "cached"),
        ],
    ),
]


def tmux(*arguments: str) -> str:
    return subprocess.run(
        ["tmux", "-L", "pyvllama-picture", "-f", "/dev/null", *arguments], check=True, capture_output=True, text=True
    ).stdout


def screen() -> str:
    return tmux("capture-pane", "-p", "-e", "-t", "t").rstrip()


def wait_for(text: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while text not in screen():
        if time.monotonic() > deadline:
            raise SystemExit(f"{text!r} did not appear:\n{screen()}")
        time.sleep(0.1)
    time.sleep(0.5)


def play(steps: list[tuple[str, str]]) -> str:
    shell = f"cd {shlex.quote(str(FOLDER))} && PYVLLAMA_DATA=$(mktemp -d) sh"  # with an empty history
    tmux("new-session", "-d", "-s", "t", "-x", str(COLUMNS), "-y", str(ROWS), shell)
    try:
        tmux("send-keys", "-t", "t", "PS1='$ '; clear", "Enter")
        time.sleep(1)
        for typed, expected in steps:
            tmux("send-keys", "-t", "t", "-l", typed)
            tmux("send-keys", "-t", "t", "Enter")
            wait_for(expected)
        return screen()
    finally:
        tmux("kill-server")


def draw(shown: str, title: str, path: Path) -> None:
    lines = shown.splitlines()
    while lines and lines[-1].strip() in ("", "$", ">>>"):
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(Text.from_ansi("\n".join(lines)))
    svg = console.export_svg(title=title, unique_id="pyvllama")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no requests to other hosts
    path.write_text(re.sub(r"\n\s*\n+", "\n", svg), encoding="utf-8")


def main() -> None:
    folder = ROOT / "tools" / "pictures"
    folder.mkdir(exist_ok=True)
    for name, title, steps in SCENES:
        draw(play(steps), title, folder / f"{name}.svg")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
