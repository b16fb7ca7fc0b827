"""Saved sessions from strangers, their checksums right: refused by name, and none ends the process.

llama.cpp's own reader asserts on positions that are negative or twice there (llama_kv_cache::state_read_meta).
"""

import json
import shutil

import numpy as np
import pytest
from pictures import noise
from verdicts import verdicts

import pyvllama
from pyvllama.sealed_file import SealedFile, write_sealed
from pyvllama.session_file import _MAGIC as MAGIC


@pytest.fixture(scope="module")
def directory(tiny_pair, tmp_path_factory):
    """A directory with a model."""
    directory = tmp_path_factory.mktemp("model")
    for path in (tiny_pair("small").text, tiny_pair("small").mmproj):
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="module")
def session(directory, tmp_path_factory):
    """(header, sections) of a good one: the tokens, the KV cache, a picture's parts."""
    path = tmp_path_factory.mktemp("session") / "good"
    options = {"kv_type": "f32", "cross_kv_type": "f32", "flash_attn": False, "n_threads": 1}
    with pyvllama.load(directory, n_ctx=256, **options) as llm:
        part = {"type": "image", "image": noise()}
        message = {"role": "user", "content": [part, {"type": "text", "text": "Hello"}]}
        llm.chat([message], max_tokens=3)
        llm.save_session(path)
    with SealedFile(path, MAGIC) as file:
        header = {key: value for key, value in file.header.items() if key != "sections"}
        return header, [file.section(i) for i in range(len(file.sizes))]


def write(path, header, sections):
    write_sealed(path, MAGIC, header, [(s.nbytes, lambda s=s: s) for s in sections], durable=False)
    return path


def numbers(section, i, value, dtype="<i4"):
    """A section with its i-th number changed."""
    changed = section.copy()
    changed[: changed.size // 4 * 4].view(dtype)[i] = value
    return changed


def kv(i, value):
    """The KV cache with one of its uint32 changed."""
    return lambda header, sections: [sections[0], numbers(sections[1], i, value, "<u4"), *sections[2:]]


def tokens(value):
    return lambda header, sections: [numbers(sections[0], 2, value), *sections[1:]]


def pictures(**changes):
    def change(header, sections):
        header["pictures"][0].update(changes)

    return change


def header(**changes):
    return lambda header, sections: header.update(changes)


def data_at(header, sections, which):
    n = header["n_cells"]
    return {"v_trans": 4 + 3 * n, "n_layers": 5 + 3 * n, "type": 6 + 3 * n, "row": 7 + 3 * n}[which]


def kv_data(which, value):
    return lambda header, sections: kv(data_at(header, sections, which), value)(header, sections)


def other_n_cells(n):
    """n positions said everywhere, the sizes of the sections as they should then be."""

    def change(header, sections):
        ours = header["n_cells"]
        n_layers = int(sections[1].view("<u4")[data_at(header, sections, "n_layers")])
        per_cell, rest = divmod(sections[1].size - 16 - 8 - 24 * n_layers, ours)
        assert rest == 0
        header["n_cells"] = n
        state = np.resize(sections[1], sections[1].size + (n - ours) * per_cell)
        return [np.resize(sections[0], 4 * n), numbers(state, 3, n, "<u4"), *sections[2:]]

    return change


EVIL = {
    "version_0": header(format=0),
    "version_text": header(format="1"),
    "no_text": header(text=None),
    "text_list": header(text=[]),
    "llama_cpp": header(llama_cpp="0000000"),
    "cells_text": header(n_cells="3"),
    "cells_true": header(n_cells=True),
    "cells_negative": header(n_cells=-1),
    "cells_none": header(n_cells=0),
    "cells_one_less": lambda header, sections: header.update(n_cells=header["n_cells"] - 1),
    "cells_over_the_context": header(n_cells=257),
    "cells_huge": header(n_cells=2**63),
    "cells_repeated": other_n_cells(200),
    "cells_fewer": other_n_cells(2),
    "pictures_none": header(pictures=None),
    "pictures_empty": header(pictures=[]),
    "pictures_texts": header(pictures=["a"]),
    "pictures_twice": lambda header, sections: header.update(pictures=header["pictures"] * 2),
    "pictures_twice_with_parts": lambda header, sections: (
        header.update(pictures=[*header["pictures"], {**header["pictures"][0], "positions": [0]}]) or
        [*sections, *sections[2:]]
    ),
    "key_none": pictures(key=None),
    "key_short": pictures(key="ab"),
    "key_no_hex": pictures(key="x" * 64),
    "key_wide_digits": pictures(key="１" * 64),
    "positions_none": pictures(positions=None),
    "positions_empty": pictures(positions=[]),
    "positions_negative": pictures(positions=[-1]),
    "positions_beyond": pictures(positions=[10**9]),
    "positions_texts": pictures(positions=["0"]),
    "positions_lists": pictures(positions=[[0]]),
    "tokens_0": pictures(n_tokens=0),
    "tokens_negative": pictures(n_tokens=-1),
    "tokens_one": pictures(n_tokens=1),
    "tokens_huge": pictures(n_tokens=2**40),
    "tokens_float": pictures(n_tokens=1.0),
    "tokens_text": pictures(n_tokens="17"),
    "tokens_none": pictures(n_tokens=None),
    "token_negative": tokens(-1),
    "token_beyond": tokens(2**31 - 1),
    "kv_magic": kv(0, 1),
    "kv_streams_0": kv(2, 0),
    "kv_streams_many": kv(2, 2**32 - 1),
    "kv_cells_0": kv(3, 0),
    "kv_cells_many": kv(3, 2**32 - 1),
    "kv_position_twice": kv(4, 1),
    "kv_position_negative": kv(4, 2**32 - 1),
    "kv_position_huge": kv(4, 2**31 - 1),
    "kv_sequences_0": kv(5, 0),
    "kv_sequences_many": kv(5, 2**32 - 1),
    "kv_v_trans": kv_data("v_trans", 0),
    "kv_layers_0": kv_data("n_layers", 0),
    "kv_layers_many": kv_data("n_layers", 2**32 - 1),
    "kv_type": kv_data("type", 2),
    "kv_type_none": kv_data("type", 2**32 - 1),
    "kv_row": kv_data("row", 2**31),
    "kv_short": lambda header, sections: [sections[0], sections[1][:-4], *sections[2:]],
    "kv_empty": lambda header, sections: [sections[0], sections[1][:0], *sections[2:]],
    "no_sections": lambda header, sections: [],
    "one_section": lambda header, sections: sections[:1],
    "one_part_less": lambda header, sections: sections[:-1],
    "one_part_more": lambda header, sections: [*sections, sections[-1]],
    "part_short": lambda header, sections: [*sections[:-1], sections[-1][:-4]],
    "part_empty": lambda header, sections: [*sections[:-1], sections[-1][:0]],
}  # fmt: skip
HARMLESS = {  # what loads, and what the model then says is its own affair
    "good": lambda header, sections: None,
    "unknown_words": header(note="Hello"),
    "another_key": pictures(key="0" * 64),
    "picture_elsewhere": pictures(positions=[0]),
    "picture_nan": lambda header, sections: [*sections[:2], *(numbers(s, 0, np.nan, "<f4") for s in sections[2:])],
    "kv_sequence": kv(6, 2**32 - 1),  # llama.cpp reads and ignores it
    "kv_v_trans_7": kv_data("v_trans", 7),  # as good as 1
    "kv_infinite": lambda header, sections: [
        sections[0], numbers(sections[1], -1, np.inf, "<f4"), *sections[2:]
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(session, directory, tmp_path_factory):
    """Name -> what loading it does."""
    out_dir = tmp_path_factory.mktemp("evil")
    paths = []
    for name, change in {**EVIL, **HARMLESS}.items():
        head, sections = json.loads(json.dumps(session[0])), list(session[1])
        changed = change(head, sections)
        paths.append(write(out_dir / name, head, sections if changed is None else changed))
    return verdicts(f"session:{directory}", paths)


@pytest.mark.parametrize("name", EVIL)
def test_evil_sessions(opened, name):
    verdict = opened[name]
    expected = "ContextOverflow" if name in ("cells_over_the_context", "cells_huge") else "FormatError"
    assert verdict["error"] == expected, verdict
    assert name in verdict["message"]


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_sessions(opened, name):
    assert opened[name]["error"] is None, opened[name]


def test_cut_at_every_boundary_and_damaged_at_random(session, directory, tmp_path):
    """Each section's beginning and end and their neighbours; and 200 files with a byte changed anywhere."""
    good = write(tmp_path / "good", *session)
    raw = good.read_bytes()
    ends = [8, 12, 12 + int.from_bytes(raw[8:12], "little")]
    ends.append(ends[-1] + 32)
    for section in session[1]:
        ends += [ends[-1] + section.nbytes, ends[-1] + section.nbytes + 32]
    assert ends[-1] == len(raw)
    cuts = sorted({end + d for end in ends for d in (-1, 0, 1) if 0 <= end + d < len(raw)})
    rng = np.random.default_rng(0)
    paths = []
    for n in cuts:
        paths.append(tmp_path / f"cut_{n}")
        paths[-1].write_bytes(raw[:n])
    for i, at in enumerate(rng.integers(0, len(raw), 200)):
        paths.append(tmp_path / f"damaged_{i}")
        paths[-1].write_bytes(raw[:at] + bytes([raw[at] ^ int(rng.integers(1, 256))]) + raw[at + 1 :])
    found = verdicts(f"session:{directory}", paths)
    assert {verdict["error"] for verdict in found.values()} == {"FormatError"}
    assert len(found) == len(paths)
