"""Small pictures as terminals are sent them; and the history's file."""

import base64
import io
import re

import pytest
from file_size_limit import file_size_limit
from pictures import BLUE, RED, noise
from PIL import Image

from pyvllama.cli.chat import history
from pyvllama.cli.chat.sixel import sixel
from pyvllama.cli.chat.thumbnail import PROTOCOLS, detect, thumbnail


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, "none"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "tmux-256color"}, "none"),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, "none"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "xterm-256color"}, "iterm"),
        ({"TERM_PROGRAM": "Apple_Terminal"}, "none"),
        ({"TERM_PROGRAM": "vscode"}, "none"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, "none"),
    ],
)
def test_what_the_environment_tells(environment, protocol):
    assert detect(environment) == protocol
    assert protocol in PROTOCOLS


def test_kitty_is_sent_chunks_of_a_png():
    sent = thumbnail(noise(600, 300), "kitty", 80)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sent)
    assert sent == "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) + "\n"
    assert len(chunks) > 1
    assert chunks[0][0] == "a=T,f=100,q=2,c=32,r=8,m=1"
    assert [keys for keys, _ in chunks[1:]] == ["m=1"] * (len(chunks) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in chunks)
    image = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in chunks))))
    assert image.size == (512, 256)


def test_iterm_is_sent_a_png_and_its_size():
    match = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=(\d+);height=(\d+);preserveAspectRatio=1:([^\x07]*)\x07\n",
        thumbnail(noise(20, 200), "iterm", 80),
    )
    data = base64.b64decode(match[4])
    assert (int(match[1]), match[2], match[3]) == (len(data), "2", "10")
    assert Image.open(io.BytesIO(data)).size == (20, 200)


def decoded_sixel(sequence):
    """The pixels of what `sixel` makes: a small reader of the format, RGB in per cent."""
    match = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\', sequence, re.DOTALL)
    width, height = int(match[1]), int(match[2])
    palette, pixels, colour, x, top = {}, {}, None, 0, 0
    token = re.compile(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|(\$)|(-)")
    for c, r, g, b, chosen, n, repeated, single, home, down in token.findall(match[3]):
        if c:
            palette[c] = (int(r), int(g), int(b))
        elif chosen:
            colour = chosen
        elif home or down:
            x, top = 0, top + (6 if down else 0)
        else:
            end = x + int(n or 1)
            rows = [i for i in range(6) if (ord(repeated or single) - 63) >> i & 1]
            pixels |= {(column, top + i): palette[colour] for column in range(x, end) for i in rows}
            x = end
    return width, height, pixels


def test_sixels_are_the_picture():
    image = Image.new("RGB", (13, 15), RED)
    image.paste(BLUE, (4, 3, 11, 14))
    width, height, pixels = decoded_sixel(sixel(image))
    assert (width, height) == image.size
    expected = {
        (x, y): tuple(round(v * 100 / 255) for v in image.getpixel((x, y))) for x in range(width) for y in range(height)
    }
    assert pixels == expected


def test_sixels_cover_every_pixel_of_a_colourful_picture():
    width, height, pixels = decoded_sixel(thumbnail(noise(200, 100), "sixel", 80).rstrip("\n"))
    assert len(pixels) == width * height


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (3000, 2000)])
@pytest.mark.parametrize("columns", [1, 3, 80])
def test_any_shape_in_any_width(size, columns):
    image = Image.new("RGB", size, RED)
    for protocol in ("kitty", "iterm", "sixel"):
        sent = thumbnail(image, protocol, columns)
        assert len(sent) < 20_000
        assert sent.endswith("\n")
    _, c, r = re.match(r"(.*),c=(\d+),r=(\d+)", thumbnail(image, "kitty", columns)).groups()
    assert int(c) <= max(1, min(32, columns - 1))
    assert int(r) <= 10
    assert thumbnail(image, "none", columns) == ""


# --- history ---


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """lines() -> what a new chat finds, the newest first."""
    monkeypatch.setenv("PYVLLAMA_DATA", str(tmp_path / "data"))
    return lambda: list(history.open_history().load_history_strings())


def test_history_keeps_lines_but_not_books(lines):
    kept = history.open_history()
    for text in ("one", "two\nlines 日本", "x" * 20_000):
        kept.append_string(text)
    assert lines() == ["two\nlines 日本", "one"]
    assert list(history.open_history(keep=False).load_history_strings()) == []


def test_a_long_history_forgets_its_beginning(lines, tmp_path):
    kept = history.open_history()
    for i in range(200):
        kept.append_string(f"{i} " + "y" * 10_000)
    after = lines()
    assert after[0].startswith("199 ")
    assert 20 < len(after) < 100
    assert all(len(text) > 10_000 for text in after)
    (file,) = (tmp_path / "data").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_long_history_on_a_full_disk(lines, tmp_path):
    kept = history.open_history()
    for i in range(200):
        kept.append_string(f"{i} " + "y" * 10_000)
    (file,) = (tmp_path / "data").iterdir()
    before = file.read_bytes()
    with file_size_limit(100_000):
        after = lines()
        history.open_history().append_string("no room")
    assert len(after) == 200
    assert list((tmp_path / "data").iterdir()) == [file]
    assert file.read_bytes() == before


def test_a_deleted_history_is_private_again(lines, tmp_path):
    kept = history.open_history()
    file = tmp_path / "data" / "history"
    file.unlink()
    kept.append_string("one")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert lines() == ["one"]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "{home}/.local/share/pyvllama"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/pyvllama"),
        ("linux", {"XDG_DATA_HOME": "data"}, "{home}/.local/share/pyvllama"),
        ("darwin", {}, "{home}/Library/Application Support/pyvllama"),
        ("linux", {"PYVLLAMA_DATA": "/own"}, "/own"),
    ],
)
def test_where_it_is(monkeypatch, tmp_path, platform, environment, expected):
    for name in ("PYVLLAMA_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(history.data_root()) == expected.format(home=tmp_path)
