"""What a typed line means: commands, pictures in it, options; and how an answer is styled."""

import itertools
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.cli.chat.attachments import find_pictures, leading_pictures, local_path
from pyvllama.cli.chat.entry import Entry, is_complete, read_entry
from pyvllama.cli.chat.markdown import MarkdownStyler
from pyvllama.cli.sampling import SAMPLING, check_sampling, read_sampling, shown_sampling
from pyvllama.errors import ConfigError, ImageError
from pyvllama.types import SamplingParams

# --- entries ---


@pytest.mark.parametrize(
    ("line", "complete", "entry"),
    [
        ("Hello", True, Entry(None, "Hello")),
        ("/help", True, Entry("/help", "")),
        ("/?", True, Entry("/?", "")),
        ("/set  temperature 0.2 ", True, Entry("/set", "temperature 0.2")),
        ("\\image http://a/b c", True, Entry("/image", "http://a/b c")),
        ("/home/me/a.png what?", True, Entry(None, "/home/me/a.png what?")),
        ("/a.png", True, Entry(None, "/a.png")),
        ("\\alpha is a letter", True, Entry(None, "\\alpha is a letter")),
        ("either /or", True, Entry(None, "either /or")),
        ("Hello \\", False, None),
        ("Hello \\\nyou", True, Entry(None, "Hello \nyou")),
        ('"""', False, None),
        ('"""a', False, None),
        ('"""a\n/exit\n"""', True, Entry(None, "a\n/exit", is_verbatim=True)),
        ('"""a\\', False, None),
        ('""""""', True, Entry(None, "", is_verbatim=True)),
        ('/system """a\n', False, None),
        ('/system """a\nb"""', True, Entry("/system", "a\nb", is_verbatim=True)),
        ('what is """ in Python?', True, Entry(None, 'what is """ in Python?')),
        ("", True, Entry(None, "")),
    ],
)
def test_entries(line, complete, entry):
    assert is_complete(line) == complete
    if complete:
        assert read_entry(line) == entry


# --- pictures in a line ---


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with pictures of odd names, which is the current one."""
    from pictures import PNG

    for name in ("a.png", "b.JPG", "my cat.png", "it's.png", "a(1).png", "ü.png", "photo", 'q"t.png'):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "bad.png").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "text", "names"),
    [
        ("a.png", "", ["a.png"]),
        ("What is a.png?", "What is a.png?", ["a.png"]),
        ("What is this? a.png", "What is this?", ["a.png"]),
        ("a.png: what is this?", "what is this?", ["a.png"]),
        ("a.png b.JPG which?", "which?", ["a.png", "b.JPG"]),
        ("Is {dir}/a.png like ~/b.JPG, or not?", "Is a.png like b.JPG, or not?", ["a.png", "b.JPG"]),
        ("{dir}/my\\ cat.png who?", "who?", ["my cat.png"]),
        ("'{dir}/my cat.png' who?", "who?", ["my cat.png"]),
        ('"{dir}/my cat.png" who?', "who?", ["my cat.png"]),
        ("{dir}/my cat.png who?", "who?", ["my cat.png"]),  # bare, as some terminals paste it
        ("who? ./my cat.png", "who?", ["my cat.png"]),
        ("'{dir}/it'\\''s.png'", "", ["it's.png"]),
        ("{dir}/it\\'s.png", "", ["it's.png"]),
        ("a\\(1\\).png what's that?", "what's that?", ["a(1).png"]),
        ("file://{dir}/my%20cat.png", "", ["my cat.png"]),
        ("file://localhost{dir}/%C3%BC.png x", "x", ["ü.png"]),
        ("What's in 'my cat.png' and don't", "What's in my cat.png and don't", ["my cat.png"]),
        ("one\na.png\ntwo", "one\na.png\ntwo", ["a.png"]),
        ("a.png, b.JPG", "", ["a.png", "b.JPG"]),
        # text
        ("gone.png", "gone.png", []),
        ("{dir}/gone.png", "{dir}/gone.png", []),
        ("a photo of notes.txt", "a photo of notes.txt", []),
        ("file://elsewhere/a.png", "file://elsewhere/a.png", []),
        ("http://[", "http://[", []),
        ("see https://example.org/page", "see https://example.org/page", []),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA", []),
        ("'unfinished a.pn", "'unfinished a.pn", []),
        ("x" * 5000 + ".png", "x" * 5000 + ".png", []),
        ("a\0.png", "a\0.png", []),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_pictures_in_a_line(folder, line, text, names):
    left, pictures = find_pictures(line.replace("{dir}", str(folder)))
    assert left == text.replace("{dir}", str(folder))
    assert [p.short_name for p in pictures] == names


def test_a_named_picture_that_is_none_is_an_error(folder):
    with pytest.raises(ImageError, match=r"bad\.png"):
        find_pictures("what is bad.png?")


def test_a_long_text_is_looked_through_quickly(folder):
    import time

    start = time.perf_counter()
    find_pictures("a word, /and/a/path or 'quotes' " * 3000)
    assert time.perf_counter() - start < 5


@given(st.text(max_size=60))
def test_any_text_without_pictures_stays(text):
    if ".png" not in text:
        assert find_pictures(text) == (text.strip(), [])


@pytest.mark.parametrize(
    ("argument", "names", "rest"),
    [
        ("a.png", ["a.png"], ""),
        ("photo", ["photo"], ""),
        ("my cat.png", ["my cat.png"], ""),
        ("'my cat.png' who is it?", ["my cat.png"], "who is it?"),
        ("a.png b.JPG What differs?", ["a.png", "b.JPG"], "What differs?"),
        ("file://{dir}/a.png", ["a.png"], ""),
    ],
)
def test_what_follows_the_command(folder, argument, names, rest):
    pictures, left = leading_pictures(argument.replace("{dir}", str(folder)))
    assert ([p.short_name for p in pictures], left) == (names, rest)


@pytest.mark.parametrize("argument", ["gone.png", "gone.png what?", "bad.png", "ftp://a/b.png"])
def test_the_command_wants_a_picture(folder, argument):
    with pytest.raises(ImageError):
        leading_pictures(argument)


def test_an_address_is_fetched(folder, monkeypatch):
    from pictures import PNG

    from pyvllama.image import source

    fetched = []
    monkeypatch.setattr(source, "fetch", lambda url, limits: fetched.append(url) or PNG)
    text, _ = find_pictures("What is https://example.org/a%20b.png?size=2 ?")
    assert text == "What is a b.png ?"
    assert leading_pictures("https://example.org/any who?")[1] == "who?"
    assert fetched == ["https://example.org/a%20b.png?size=2", "https://example.org/any"]


def test_a_picture_is_read_when_it_is_attached(folder):
    _, (picture,) = find_pictures("a.png")
    before = picture.digest
    shutil.rmtree(folder)
    assert picture.digest == before
    assert picture.image.getpixel((0, 0))


def test_other_addresses_are_no_paths():
    assert local_path("http://a/b") == "http://a/b"
    assert local_path("file://[") == "file://["


# --- options ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature 0.2", ("temperature", 0.2)),
        ("temperature=0.2", ("temperature", 0.2)),
        ("--top-k 5", ("top_k", 5)),
        ("seed default", ("seed", None)),
        ('stop "a b" c', ("stop", ["a b", "c"])),
    ],
)
def test_set(text, expected):
    assert read_sampling(text) == expected


@pytest.mark.parametrize(
    "text", ["heat 1", "temperature", "temperature warm", "top_p 2", "seed -1", 'stop "a', 'stop ""', "max_tokens 1.5"]
)
def test_set_refuses(text):
    with pytest.raises(ConfigError, match=text.split()[0]):
        read_sampling(text)


def test_every_option_is_one_of_the_model():
    for name in SAMPLING:
        assert hasattr(SamplingParams(), name)
        assert name in shown_sampling({}, SamplingParams())
    assert "* stop               'a b'" in shown_sampling({"stop": ["a b"]}, SamplingParams())
    with pytest.raises(ConfigError, match="heat"):
        check_sampling({"heat": 1})


# --- Markdown ---


def styled(text, sizes=()):
    styler, result = MarkdownStyler(), []
    for size in sizes:
        result += styler.feed(text[:size])
        text = text[size:]
    return [*result, *styler.feed(text), *styler.finish()]


MARKDOWN = st.text(alphabet="ab #*`~\n", max_size=60)


@given(MARKDOWN, st.lists(st.integers(1, 5), max_size=30))
def test_the_characters_are_never_changed_and_pieces_make_no_difference(text, sizes):
    def by_character(pieces):
        return [(char, style) for piece, style in pieces for char in piece]

    pieces = styled(text, sizes)
    assert "".join(piece for piece, _ in pieces) == text
    assert by_character(pieces) == by_character(styled(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain *text* 2 ** 3\n", [("plain *text* 2 ** 3\n", None)]),
        ("a **b** c", [("a ", None), ("**b**", "strong"), (" c", None)]),
        ("## T\nx", [("## T", "heading"), ("\nx", None)]),
        ("#tag", [("#tag", None)]),
        ("`**a`b", [("`**a`", "code"), ("b", None)]),
        ("```py\n# x **y**\n```\n**z**", [
            ("```py", "code"), ("\n", None), ("# x **y**", "code"), ("\n", None), ("```", "code"), ("\n", None),
            ("**z**", "strong"),
        ]),
        ("**open\nx", [("**open", "strong"), ("\nx", None)]),
        ("* item\n", [("* item\n", None)]),
    ],
)  # fmt: skip
def test_styles(text, expected):
    pieces = [list(group) for _, group in itertools.groupby(styled(text), key=lambda piece: piece[1])]
    assert [("".join(piece for piece, _ in group), group[0][1]) for group in pieces] == expected


def test_text_is_held_back_only_while_it_is_unclear():
    styler = MarkdownStyler()
    assert styler.feed("a *") == [("a ", None)]
    assert styler.feed("b") == [("*b", None)]
