"""Files of chats and texts: what is read from them, and what the messages say of those that are wrong."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pyvllama.chats_file import Chat, Text, read_chats
from pyvllama.errors import ConfigError, PromptError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "a b.png")
    return tmp_path


def chat(*content, answer="Yes."):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def write(folder, *lines, name="chats.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def url_of(item):
    return item.messages[0]["content"][0]["image_url"]["url"]


def test_chats_in_both_shapes(folder):
    first, second = chat("x"), [{"role": "user", "content": "Hi"}]
    first[0]["content"] = [{"type": "text", "text": "Hi"}]
    path = write(folder, {"messages": first, "id": 7}, "", second, "  ")
    a, b = read_chats([path])
    assert isinstance(a, Chat) and a.messages == first and a.where == f"{path}:1" and a.tools is None
    assert b.messages == second and b.where == f"{path}:3"


def test_a_byte_order_mark_and_line_ends_of_windows(folder):
    path = folder / "chats.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "Hi\u2028there"}]}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert [item.where[-2:] for item in read_chats([path])] == [":1", ":2"]


def test_pictures_are_found_from_anywhere(folder, monkeypatch):
    absolute = str(folder / "pictures" / "a b.png")
    data = "data:image/png;base64,AAAA"
    urls = ["pictures/a b.png", "./pictures/a b.png", absolute, "https://example.org/a.png", data]
    parts = [picture(url) for url in urls]
    parts += [{"type": "image_url", "image_url": "pictures/a b.png"}, {"type": "image", "image": "pictures/a b.png"}]
    path = write(folder, *({"messages": chat(part)} for part in parts))
    monkeypatch.chdir(folder.parent)
    got = [url_of(item) for item in read_chats([path])]
    assert got[3:5] == [urls[3], data]
    assert {Path(url).resolve() for url in got[:3] + got[5:]} == {Path(absolute).resolve()}
    assert all(Path(url).is_absolute() for url in got[:3] + got[5:])


def test_tools_come_along(folder):
    tools = [{"type": "function", "function": {"name": "f"}}]
    (item,) = read_chats([write(folder, {"messages": [{"role": "user", "content": "Hi"}], "tools": tools})])
    assert item.tools == tools


def test_texts(folder):
    path = write(folder, "Call me", "Ishmael.", name="moby.txt")
    (item,) = read_chats([path])
    assert isinstance(item, Text) and item.text == "Call me\nIshmael." and item.where == str(path)


WRONG_LINES = {
    "no json": ("{", "this is no JSON"),
    "deep": ("[" * 100000, "this is no JSON"),
    "a number": ("7", "expected"),
    "no messages": ({"prompt": "Hi"}, 'has no "messages"'),
    "messages no list": ({"messages": "Hi"}, "or a list of messages"),
    "empty": ({"messages": []}, "messages is empty"),
    "role": ({"messages": [{"role": "robot", "content": "Hi"}]}, "unknown role 'robot'"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "unknown type 'video'"),
    "no such picture": ({"messages": chat(picture("gone.png"))}, r"messages\[0\]\.content\[0\]: there is no picture"),
    "no file at all": ({"messages": chat(picture("x" * 5000))}, "there is no picture file"),
    "zero": ({"messages": chat(picture("a\0b"))}, "there is no picture file"),
    "bytes": ({"messages": chat({"type": "image", "image": [1, 2]})}, "a path, an address or a data: URI"),
    "tools": ({"messages": [{"role": "user", "content": "Hi"}], "tools": "f"}, "tools must be a list"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_wrong_lines_are_named(folder, name):
    line, message = WRONG_LINES[name]
    path = write(folder, {"messages": [{"role": "user", "content": "Hi"}]}, "", line)
    with pytest.raises(PromptError, match=message) as caught:
        read_chats([path])
    assert str(caught.value).startswith(f"{path}:3: ")


def test_wrong_files_are_named(folder):
    with pytest.raises(ConfigError, match="no dataset is given"):
        read_chats([])
    with pytest.raises(ConfigError, match=r"gone\.jsonl cannot be read"):
        read_chats([folder / "gone.jsonl"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_chats([folder])
    with pytest.raises(PromptError, match="holds no chats"):
        read_chats([write(folder, "", " ")])
    with pytest.raises(PromptError, match="is empty"):
        read_chats([write(folder, " ", name="a.txt")])
    (folder / "b.txt").write_bytes(b"abc\xff")
    with pytest.raises(PromptError, match=r"no UTF-8 text \(byte 3\)"):
        read_chats([folder / "b.txt"])
