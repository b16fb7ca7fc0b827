"""The files of `torch.save`: read without PyTorch, and without running anything that a hostile one names."""

import json
import pickle
import struct
import zipfile

import meta_files
import numpy as np
import pytest
from meta_files import dict_of, name_of, tensor_of, text, tuple_of, whole, write_archive, write_pth

from pyvllama.conversion.state_dict import read_state_dict
from pyvllama.conversion.torch_file import read_torch_file
from pyvllama.errors import CheckpointError


class Evil:
    """What pickles into a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def marker(tmp_path):
    return tmp_path / "executed"


def calls_of(path):
    """Pickles, each with the name that must be in the error; running one would make the file `path`."""
    import builtins
    import os
    import subprocess

    command = f"touch {path}"
    yield pickle.dumps({"w": Evil(os.system, command)}, protocol=2), "system"
    yield pickle.dumps({"w": Evil(os.system, command)}, protocol=4), "system"
    yield pickle.dumps({"w": Evil(subprocess.Popen, ["touch", str(path)])}, protocol=5), "subprocess.Popen"
    yield pickle.dumps({"w": Evil(builtins.eval, f"open({str(path)!r}, 'w')")}, protocol=2), "eval"
    yield dict_of({"w": name_of("builtins", "getattr") + tuple_of(text("x"), text("y")) + b"R"}), "builtins.getattr"
    yield dict_of({"w": b"(" + text(command) + b"ios\nsystem\n"}), "INST"
    yield dict_of({"w": b"(" + name_of("os", "system") + text(command) + b"o"}), "os.system"
    yield dict_of({"w": name_of("torch", "load") + tuple_of(text(str(path))) + b"R"}), "torch.load"
    yield dict_of({"w": name_of("torch._utils", "_rebuild_tensor_v2.__globals__")}), "_rebuild_tensor_v2.__globals__"
    yield dict_of({"w": name_of("collections", "OrderedDict") + b")\x81"}), "NEWOBJ"
    yield dict_of({"w": name_of("torch", "FloatStorage") + b")R"}), "_StorageType"
    yield dict_of({"w": b"\x82\x01"}), "EXT1"
    yield dict_of({"w": b"c__builtin__\nexec\n" + tuple_of(text("1")) + b"R"}), "__builtin__.exec"


@pytest.mark.parametrize("case", range(13))
def test_hostile_pickles_are_refused_by_name_and_never_run(case, tmp_path):
    data, name = list(calls_of(marker(tmp_path)))[case]
    path = write_archive(tmp_path / "consolidated.00.pth", data, {})
    with pytest.raises(CheckpointError, match=rf"consolidated\.00\.pth .*{name}.*nothing of it has been executed"):
        read_torch_file(path)
    assert not marker(tmp_path).exists()


def test_all_hostile_pickles_are_tested(tmp_path):
    assert len(list(calls_of(marker(tmp_path)))) == 13


ORDERED = name_of("collections", "OrderedDict")
DEEP = b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple ...
BOMB = b")" + b"2\x86" * 100  # each tuple holds the one before twice: 2^100 in all


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle exhausted|no valid pickle"),
        (b"\x80\x02}", "no valid pickle"),
        (b"garbage", "no valid pickle"),
        (b"\x80\x02.", "no valid pickle"),
        (b"\x80\x02].", "holds list, but a state dict is a dict"),
        (b"\x80\x02}(" + text("a") + b"u.", "no valid pickle"),  # a key without a value
        (b"\x80\x02}s.", "no valid pickle"),
        (b"\x80\x02}u.", "mark is missing"),
        (b"\x80\x02}h\x05.", "no valid pickle"),  # from a memo that is empty
        (b"\x80\x02}(K\x01K\x02u.", "int where a text must be"),
        (b"\x80\x02}(" + DEEP + b"K\x02u.", "text must be"),  # hashing it would overflow the C stack
        (b"\x80\x02}(" + text("a") + BOMB + b"R" + b"u.", "DUP"),
        (b"\x80\x02}X\xff\xff\xff\xff", "no valid pickle"),  # a text of 4 GiB
        (b"\x80\x02}r\xff\xff\xff\xffK\x01.", "holds int"),  # a memo of 4 Gi entries, if it were an array
        (b"\x80\x04}\x8d" + struct.pack("<Q", 1 << 62), "no valid pickle"),
        (dict_of({"a": ORDERED + tuple_of(whole(1)) + b"R"}), "no valid pickle"),
        (dict_of({"a": b"\x85Q"}), "no valid pickle"),  # a storage that is none
        (dict_of({"a": whole(7) + b"}b"}), "no dict where one must be"),
        (dict_of({"a": name_of("torch._utils", "_rebuild_tensor_v2") + b")R"}), "no valid pickle"),
        (dict_of({"a": name_of("torch._utils", "_rebuild_parameter") + tuple_of(whole(1)) + b"R"}), "parameter"),
        (dict_of({"a": tensor_of("0", (2, -1))}), "no valid pickle"),
        (dict_of({"a": tensor_of("0", (2, 2), strides=[2])}), "no valid pickle"),
    ],
)
def test_damaged_pickles(data, message):
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(data, "here")


def test_what_state_dicts_hold():
    tensor = tensor_of("0", (2, 3), "BF16", offset=4)
    parameter = name_of("torch._utils", "_rebuild_parameter") + tuple_of(tensor, b"\x88", ORDERED + b")R") + b"R"
    data = b"\x80\x02" + ORDERED + b")R(" + text("a") + tensor + text("b") + parameter + b"u"
    data += b"}" + text("_metadata") + ORDERED + b")Rsb."
    found = read_state_dict(data, "here")
    assert found["a"] == found["b"]
    assert (found["a"].shape, found["a"].strides, found["a"].offset) == ((2, 3), (3, 1), 4)
    assert (found["a"].storage.dtype, found["a"].storage.n_elements) == ("BF16", 6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values(dtype, tmp_path):
    values = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(1, np.float32), "c": np.zeros((2, 0, 3))}
    tensors = read_torch_file(write_pth(tmp_path / "x.pth", values, dtype))
    assert tensors["a"].type == dtype.lower()
    assert (
        tensors["a"].rows(np.array([2, 0])).tobytes()
        == meta_files.factories.STORED[dtype](values["a"][[2, 0]]).tobytes()
    )
    assert tensors["b"].shape == (1,)
    assert tensors["c"].shape == (2, 0, 3)


def test_views_of_one_storage(tmp_path):
    data = np.arange(10, dtype=np.float32)
    views = {
        "head": tensor_of("0", (4,), n_elements=10),
        "tail": tensor_of("0", (2, 3), offset=4, n_elements=10),
        "odd": tensor_of("0", (1, 3), strides=[77, 1], n_elements=10),  # the stride of a dimension of 1 says nothing
    }
    tensors = read_torch_file(write_archive(tmp_path / "x.pth", dict_of(views), {"0": data.tobytes()}))
    assert tensors["tail"].rows(np.arange(2)).tolist() == [[4, 5, 6], [7, 8, 9]]
    assert tensors["odd"].rows(np.arange(1)).tolist() == [[0, 1, 2]]


def one(path, tensor, data=bytes(16), **options):
    return write_archive(path, dict_of({"w": tensor}), {"0": data}, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no archive"), "no PyTorch checkpoint, or truncated"),
        (lambda p: p.write_bytes(pickle.dumps({})), "before 1.6"),
        (lambda p: one(p, tensor_of("0", (5,))), r"w of shape \[5\] reaches beyond its 16 stored bytes"),
        (lambda p: one(p, tensor_of("0", (2,), offset=3)), "reaches beyond"),
        (lambda p: one(p, tensor_of("0", (1 << 40, 1 << 40))), "reaches beyond"),
        (lambda p: one(p, tensor_of("0", (2, 2), strides=[1, 2])), "not stored in order"),
        (lambda p: one(p, tensor_of("0", (2, 2), strides=[0, 1])), "not stored in order"),
        (lambda p: one(p, tensor_of("1", (4,))), r"data/1\) are missing"),
        (lambda p: one(p, tensor_of("../0", (4,))), "are missing"),
        (lambda p: one(p, tensor_of("0", (4,)), compression=zipfile.ZIP_DEFLATED), "or compressed"),
        (lambda p: one(p, tensor_of("0", (2,), storage="LongStorage")), "w is of type long"),
        (lambda p: one(p, whole(3)), "w is of type int, not a tensor"),
    ],
)
def test_damaged_files(make, message, tmp_path):
    path = tmp_path / "x.pth"
    make(path)
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(path)


def test_truncated_anywhere(tmp_path):
    """Cut at any place, a file is refused or whole in what it still claims to hold; it never crashes."""
    whole_file = one(tmp_path / "x.pth", tensor_of("0", (4,))).read_bytes()
    for n in range(0, len(whole_file), 7):
        (tmp_path / "cut.pth").write_bytes(whole_file[:n])
        with pytest.raises(CheckpointError):
            read_torch_file(tmp_path / "cut.pth")


def test_any_damaged_byte_of_the_archive(tmp_path):
    """Nothing but our own error comes out, whichever byte is wrong."""
    good = bytearray(one(tmp_path / "x.pth", tensor_of("0", (4,))).read_bytes())
    for i in range(len(good)):
        damaged = good.copy()
        damaged[i] ^= 0xFF
        (tmp_path / "bad.pth").write_bytes(damaged)
        try:
            for tensor in read_torch_file(tmp_path / "bad.pth").values():
                tensor.rows(np.arange(tensor.n_rows))
        except CheckpointError:
            continue


def test_several_archives_in_one_and_big_endian(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", dict_of({}))
        archive.writestr("b/data.pkl", dict_of({}))
    with pytest.raises(CheckpointError, match=r"holds 2 data\.pkl"):
        read_torch_file(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", dict_of({}))
        archive.writestr("a/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.reference
def test_torch_itself_writes_what_is_read(tmp_path):
    import torch

    tensors = {
        f"t{i}": torch.randn(3, i + 1).to(d) for i, d in enumerate((torch.float32, torch.float16, torch.bfloat16))
    }
    torch.save(tensors, tmp_path / "x.pth")
    for name, tensor in read_torch_file(tmp_path / "x.pth").items():
        expected = tensors[name].view(torch.int16 if tensor.type != "f32" else torch.int32).numpy()
        assert tensor.rows(np.arange(3)).tobytes() == expected.tobytes()
    torch.save({"a": torch.arange(3)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="a is of type long"):
        read_torch_file(tmp_path / "x.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_torch_file(tmp_path / "old.pth")


def test_pickles_are_named_where_they_are(tmp_path):
    source = meta_files.write_meta(tmp_path / "meta")
    (source / "params.json").write_text(json.dumps({}))
    write_archive(source / "consolidated.00.pth", dict_of({"w": name_of("os", "getcwd") + b")R"}), {})
    from pyvllama.conversion import convert

    with pytest.raises(CheckpointError, match=r"names 'os\.getcwd'"):
        convert(source, tmp_path / "out")
