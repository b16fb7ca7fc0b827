"""Files below one directory, and every way out of it that we know."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from pictures import PNG, noise, same

from pyvllama.errors import ImageError, ImageTooLarge
from pyvllama.image import ImageLimits, load_image
from pyvllama.image import media_path as module
from pyvllama.image.media_path import read_below

LIMIT = 1 << 20
SECRET = b"the secret of the house"


@pytest.fixture
def media(tmp_path):
    """media/{a.png, cats/b.png, ...} beside secret.txt and mediaother/c.png."""
    root = tmp_path / "media"
    (root / "cats").mkdir(parents=True)
    for path in (root / "a.png", root / "cats" / "b.png", root / "a b%41.png", tmp_path / "mediaother" / "c.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PNG)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    return root


@pytest.mark.parametrize(
    "name",
    ["a.png", "./a.png", "cats/b.png", "cats/../a.png", "cats//b.png", "file://a.png", "file://cats/b.png", "FILE://a.png",
     "a b%41.png", "file://a%20b%2541.png", "file:a.png", "file://./a.png"],
)  # fmt: skip
def test_below(media, name):
    assert read_below(media, name, LIMIT) == PNG


def test_absolute_paths_below(media):
    for name in (f"{media}/a.png", f"file://{media}/a.png", f"file://localhost{media}/cats/b.png"):
        assert read_below(media, name, LIMIT) == PNG


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "cats/../../secret.txt", "/etc/passwd", "file:///etc/passwd", "file://../secret.txt",
     "file://%2e%2e/secret.txt", "file://..%2fsecret.txt", "file://cats/..%2f..%2fsecret.txt", "file:////etc/passwd",
     "../mediaother/c.png", "{}other/c.png", "file://{}other/c.png", "~/secret.txt", "~root/.profile", "$HOME/x",
     "none.png", "", ".", "cats", "a.png/../../secret.txt", "a.png\0", "a.png\0/../../secret.txt",
     "file://a.png?x", "file://a.png#x", "file://%00", "file://a.png%00", "file://%ff", "x" * 5000, "a/" * 3000,
     "/dev/zero", "/proc/self/environ", "/dev/stdin", "..\\secret.txt", "file://evil.example/a.png", "file://[/a.png"],
)  # fmt: skip
def test_out(media, name):
    with pytest.raises(ImageError) as caught:
        read_below(media, name.format(media), LIMIT)
    assert len(str(caught.value)) < 300


def test_outside_nothing_is_told_apart(media):
    """Whether a file exists out there is nobody's business."""
    said = set()
    for name in ("../secret.txt", "../nothing.txt"):
        with pytest.raises(ImageError) as caught:
            read_below(media, name, LIMIT)
        said.add(str(caught.value).replace(name, "NAME"))
    assert len(said) == 1


def test_links(media, tmp_path):
    (media / "inner").symlink_to(media / "cats" / "b.png")
    (media / "folder").symlink_to("cats", target_is_directory=True)
    (media / "out").symlink_to(tmp_path / "secret.txt")
    (media / "out_folder").symlink_to(tmp_path, target_is_directory=True)
    (media / "up").symlink_to("..", target_is_directory=True)
    (media / "loop").symlink_to("loop")
    (media / "chain").symlink_to("out")
    assert read_below(media, "inner", LIMIT) == read_below(media, "folder/b.png", LIMIT) == PNG
    for name in ("out", "out_folder/secret.txt", "up/secret.txt", "loop", "chain", "folder/../../secret.txt"):
        with pytest.raises(ImageError, match="there is no picture"):
            read_below(media, name, LIMIT)


def test_the_directory_itself_may_be_a_link(media, tmp_path):
    (tmp_path / "link").symlink_to(media, target_is_directory=True)
    assert read_below(tmp_path / "link", "a.png", LIMIT) == PNG
    assert read_below(tmp_path / "link", f"{tmp_path}/link/a.png", LIMIT) == PNG


def test_special_files(media, tmp_path, monkeypatch):
    os.mkfifo(media / "pipe.png")
    monkeypatch.chdir(media)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket.png")
        start = time.monotonic()
        for name in ("pipe.png", "socket.png"):
            with pytest.raises(ImageError):
                read_below(media, name, LIMIT)
        assert time.monotonic() - start < 5, "a pipe nobody writes to is not waited for"


def test_too_large(media):
    (media / "big.png").write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(ImageTooLarge, match="over the limit"):
        read_below(media, "big.png", LIMIT)


def test_a_link_put_there_after_the_check(media, tmp_path, monkeypatch):
    """Between the look and the opening somebody puts a link in a file's, or a directory's, place."""
    real = os.path.realpath

    for swapped, name in ((media / "a.png", "a.png"), (media / "cats", "cats/secret.txt")):
        (media / "cats" / "secret.txt").write_bytes(PNG) if swapped.is_dir() else None
        kept = swapped.with_name("kept")

        def realpath(path, swapped=swapped, name=name, kept=kept, **options):
            found = real(path, **options)
            if str(path).endswith(name) and not swapped.is_symlink():
                swapped.rename(kept)
                swapped.symlink_to(tmp_path if kept.is_dir() else tmp_path / "secret.txt")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(module.os.path, "realpath", realpath)
            with pytest.raises(ImageError, match="there is no picture"):
                read_below(media, name, LIMIT)
        assert swapped.is_symlink(), "the race took place"
        swapped.unlink()
        kept.rename(swapped)


def test_races_by_the_thousand(media, tmp_path):
    """A thread swaps a directory with a link to the outside as fast as it can; the secret is never read."""
    inside, spare = media / "cats", media / "spare"
    (inside / "secret.txt").write_bytes(PNG)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            inside.rename(spare)
            (tmp_path / "link").rename(inside)
            inside.rename(tmp_path / "link")
            spare.rename(inside)

    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    try:
        for _ in range(3000):
            with contextlib.suppress(ImageError):
                assert read_below(media, "cats/secret.txt", LIMIT) == PNG
    finally:
        stop.set()
        thread.join()


def test_a_descriptor_is_not_left_open(media):
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("only Linux tells")
    before = len([*open_files.iterdir()])
    for name in ("a.png", "cats/b.png", "none", "cats/none", "cats"):
        with contextlib.suppress(ImageError):
            read_below(media, name, LIMIT)
    assert len([*open_files.iterdir()]) == before


def test_load_image(media, tmp_path):
    limits = ImageLimits(allow_files=False, media_path=media)
    for name in ("a.png", "file://a.png", str(media / "a.png")):
        assert same(load_image(name, limits=limits), noise())
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "file:///etc/passwd"):
        with pytest.raises(ImageError, match="there is no picture"):
            load_image(name, limits=limits)
    (media / "text.png").write_bytes(SECRET)
    with pytest.raises(ImageError, match="it is text") as caught:
        load_image("text.png", limits=limits)
    assert "secret of" not in str(caught.value)
    for name in ("a.png", "file://a.png", str(media / "a.png")):
        with pytest.raises(ImageError):
            load_image(name, limits=ImageLimits(allow_files=False))
