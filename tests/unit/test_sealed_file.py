"""A file of sections is believed whole or not at all; whatever is in the way of writing one leaves nothing behind."""

import hashlib
import json
import os
import struct

import numpy as np
import pytest

from pyvllama.errors import FormatError
from pyvllama.sealed_file import SealedFile, sealed_size, write_sealed

MAGIC = b"PVLTESTS"
HEADER = {"name": "Bäume", "n": 3}
DATA = [np.arange(n, dtype=np.uint8) for n in (5, 0, 200)]
SECTIONS = [(data.nbytes, lambda data=data: data) for data in DATA]


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "a", MAGIC, HEADER, SECTIONS, durable=True)
    return tmp_path / "a"


def read(path, magic=MAGIC):
    with SealedFile(path, magic) as file:
        return [file.section(i) for i in range(len(file.sizes))]


def test_what_was_written_is_read(path):
    with SealedFile(path, MAGIC) as file:
        assert file.header == {**HEADER, "sections": [5, 0, 200]}
        assert file.sizes == (5, 0, 200)
        for i in (2, 0, 1, 2):  # in any order, and again
            np.testing.assert_array_equal(file.section(i), DATA[i])
    assert path.stat().st_size == sealed_size(MAGIC, HEADER, SECTIONS)


def test_only_the_owner_can_read_it(path):
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_cut_is_noticed(path):
    raw = path.read_bytes()
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(FormatError, match=r"cut off|another kind"):
            read(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(FormatError, match="should have"):
        read(path)


def test_every_changed_byte_is_noticed(path):
    raw = path.read_bytes()
    for i in range(len(raw)):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        with pytest.raises(FormatError, match=r"a: .*(damaged|another kind)"):
            read(path)


def test_another_kind(path):
    with pytest.raises(FormatError, match="another kind"):
        read(path, b"PVLOTHER")


def sealed(text, sections=b"", n=None):
    """A file with any header, its checksum right."""
    head = struct.pack("<8sI", MAGIC, len(text) if n is None else n) + text
    return head + hashlib.sha256(head).digest() + sections


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"\xff", b"[]", b"1", b"null", b"{}", b'{"sections": 1}', b'{"sections": {}}', b'{"sections": [-1]}',
        b'{"sections": [1.0]}', b'{"sections": [true]}', b'{"sections": ["1"]}', b'{"sections": [1e400]}',
        b'{"sections": [99999999999999999999]}', b'{"sections": [' + b"9" * 5000 + b"]}", b'{"sections": [1]}',
        b"[" * 100_000, b'{"sections": ' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_headers_that_are_none(tmp_path, text):
    (tmp_path / "a").write_bytes(sealed(text))
    with pytest.raises(FormatError):
        SealedFile(tmp_path / "a", MAGIC)


def test_sections_beyond_the_end(tmp_path):
    (tmp_path / "a").write_bytes(sealed(b'{"sections": [1000000000000000]}', b"\0" * 33))
    with pytest.raises(FormatError, match="should have"):
        SealedFile(tmp_path / "a", MAGIC)


@pytest.mark.parametrize("n", [2**32 - 1, 2**31, 17 << 20, 100])
def test_a_header_size_is_not_believed(tmp_path, n):
    (tmp_path / "a").write_bytes(sealed(b"{}", n=n))
    with pytest.raises(FormatError, match="longer than it can be"):
        SealedFile(tmp_path / "a", MAGIC)


def test_sections_may_be_none(tmp_path):
    (tmp_path / "a").write_bytes(sealed(json.dumps({"sections": []}).encode()))
    assert read(tmp_path / "a") == []


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(FormatError, match="regular file"):
            SealedFile(tmp_path / name, MAGIC)
    with pytest.raises(FileNotFoundError):
        SealedFile(tmp_path / "nothing", MAGIC)


def fail():
    raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("section", "error"), [((3, fail), RuntimeError), ((3, lambda: np.zeros(4, np.uint8)), ValueError)]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(path, section, error):
    raw = path.read_bytes()
    with pytest.raises(error):
        write_sealed(path, MAGIC, HEADER, [*SECTIONS, section], durable=False)
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    assert path.read_bytes() == raw


def test_it_is_replaced_at_once(path):
    with SealedFile(path, MAGIC) as old:
        write_sealed(path, MAGIC, {"n": 4}, SECTIONS[:1], durable=False)
        np.testing.assert_array_equal(old.section(2), DATA[2])  # who reads the old one goes on
    with SealedFile(path, MAGIC) as new:
        assert new.header["n"] == 4
