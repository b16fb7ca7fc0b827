"""Evil GGUF containers, one function each, that any reader must refuse; its comment says which bug it remembers.

All start from a correct mmproj. Most kinds come from llama.cpp's tests/test-gguf.cpp and from the flaws found in its
reader in 2024 (CVE-2024-21802 and its neighbours): counts and lengths of the file multiplied, unchecked, into too small
allocations.
"""

import struct
from collections.abc import Callable

import gguf_bytes as gb
from gguf_bytes import Gguf

Maker = Callable[[Gguf], "bytes | None"]  # changes the parts, or returns the bytes to write
CONTAINERS: dict[str, Maker] = {}


def evil(maker: Maker) -> Maker:
    CONTAINERS[maker.__name__] = maker
    return maker


def first(g: Gguf) -> gb.Tensor:
    return g.tensor("xattn.blk.3.attn_q.weight")


# --- the container ---


@evil
def empty_file(g: Gguf) -> bytes:
    # a download that never began
    return b""


@evil
def no_gguf_at_all(g: Gguf) -> bytes:
    # a web page saved under the model's name
    return b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 20


@evil
def git_lfs_pointer(g: Gguf) -> bytes:
    # what a clone without git-lfs leaves
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"


@evil
def wrong_magic(g: Gguf) -> None:
    g.magic = b"GGML"


@evil
def version_1(g: Gguf) -> None:
    # counts were 32 bits wide in version 1
    g.version = 1


@evil
def version_of_the_future(g: Gguf) -> None:
    g.version = 99


@evil
def big_endian(g: Gguf) -> bytes:
    raw = g.to_bytes()
    return raw[:4] + struct.pack(">I", 3) + raw[8:]


@evil
def magic_alone(g: Gguf) -> bytes:
    return b"GGUF"


@evil
def truncated_in_the_keys(g: Gguf) -> bytes:
    return g.to_bytes()[:200]


@evil
def truncated_in_the_tensor_directory(g: Gguf) -> bytes:
    return g.header()[:-7]


@evil
def truncated_before_the_data(g: Gguf) -> bytes:
    return g.header()


@evil
def truncated_in_the_data(g: Gguf) -> bytes:
    # an interrupted download or a full disk
    raw = g.to_bytes()
    return raw[: len(raw) - len(g.tensors[-1].data) // 2 - 32]


@evil
def more_keys_than_there_are(g: Gguf) -> None:
    g.n_keys_claimed = len(g.keys) + 1


@evil
def absurd_number_of_keys(g: Gguf) -> None:
    # n_kv * sizeof(kv) wraps
    g.n_keys_claimed = 2**61


@evil
def negative_number_of_keys(g: Gguf) -> None:
    g.n_keys_claimed = 2**64 - 1


@evil
def more_tensors_than_there_are(g: Gguf) -> None:
    g.n_tensors_claimed = len(g.tensors) + 1


@evil
def absurd_number_of_tensors(g: Gguf) -> None:
    # n_tensors * sizeof(info) wraps
    g.n_tensors_claimed = 2**60


@evil
def negative_number_of_tensors(g: Gguf) -> None:
    g.n_tensors_claimed = 2**64 - 5


# --- keys ---


@evil
def key_longer_than_the_file(g: Gguf) -> bytes:
    # length + 1 wraps to 0 before the allocation
    return g.magic + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 1) + b"general.name"


@evil
def string_longer_than_the_file(g: Gguf) -> None:
    g.key("general.name").payload = struct.pack("<Q", 2**40) + b"abc"


@evil
def array_longer_than_the_file(g: Gguf) -> None:
    # n * sizeof(type) wraps
    g.set("clip.mllama.supported_aspect_ratios", gb.ARRAY, gb.array(gb.I32, [], claimed=2**62))


@evil
def array_of_strings_longer_than_the_file(g: Gguf) -> None:
    # the same, with strings
    g.set("general.tags", gb.ARRAY, gb.array(gb.STRING, [gb.string("a")], claimed=2**61))


@evil
def array_of_arrays(g: Gguf) -> None:
    # nesting deep enough ends a recursive reader's stack; no reader allows it
    nested = gb.array(gb.I32, [gb.scalar(gb.I32, 1)])
    for _ in range(2000):
        nested = gb.array(gb.ARRAY, [nested])
    g.set("general.tags", gb.ARRAY, nested)


@evil
def unknown_kind_of_value(g: Gguf) -> None:
    g.set("general.tags", 13, bytes(8))


@evil
def key_twice(g: Gguf) -> None:
    # two readers may believe different ones
    g.keys.append(gb.Key("clip.vision.image_size", gb.U32, gb.scalar(gb.U32, 14)))


@evil
def empty_key(g: Gguf) -> None:
    # ggml asserts that a key has a name, which ends the process
    g.keys.append(gb.Key("", gb.U32, gb.scalar(gb.U32, 1)))


@evil
def alignment_zero(g: Gguf) -> None:
    # modulo by zero
    g.set("general.alignment", gb.U32, gb.scalar(gb.U32, 0))


@evil
def alignment_no_power_of_two(g: Gguf) -> None:
    g.set("general.alignment", gb.U32, gb.scalar(gb.U32, 48))


@evil
def alignment_a_string(g: Gguf) -> None:
    # ggml asserts on the kind of this one key, which ends the process
    g.set("general.alignment", gb.STRING, gb.string("32"))


# --- the tensor directory ---


@evil
def tensor_twice(g: Gguf) -> None:
    g.tensors.append(gb.Tensor("mm.0.bias", [1], gb.TYPE_F32, bytes(32)))


@evil
def tensor_name_too_long(g: Gguf) -> None:
    # ggml's names end at 63 bytes; a reader that cuts them sees duplicates
    g.tensors.append(gb.Tensor("v." + "x" * 80, [8], gb.TYPE_F32, bytes(32)))


@evil
def tensor_of_five_dimensions(g: Gguf) -> None:
    # writes past ne[4]
    g.tensors.append(gb.Tensor("v.extra", [1, 1, 1, 1, 8], gb.TYPE_F32, bytes(32)))


@evil
def tensor_dimensions_overflow(g: Gguf) -> None:
    # 2^32 * 2^32 elements wrap to 0, which any file can hold
    first(g).dims = [2**32, 2**32]


@evil
def tensor_dimension_negative(g: Gguf) -> None:
    first(g).dims = [2**64 - 128, 128]


@evil
def tensor_bytes_overflow(g: Gguf) -> None:
    # the number of elements fits 63 bits, that of bytes does not fit 64
    first(g).dims = [2**62, 1]


@evil
def tensor_of_unknown_type(g: Gguf) -> None:
    first(g).kind = 250


@evil
def tensor_of_removed_type(g: Gguf) -> None:
    # Q4_2 had number 4; its block size in ggml's table is 0 today: a division by zero
    first(g).kind = 4


@evil
def tensor_rows_of_broken_blocks(g: Gguf) -> None:
    # rows of 20 elements in Q8_0's blocks of 32
    first(g).kind, first(g).dims = 8, [20, 8]


@evil
def tensor_offset_past_the_end(g: Gguf) -> None:
    g.tensors[-1].offset = 2**40


@evil
def tensor_offset_wraps(g: Gguf) -> None:
    # offset + size wraps to a small number
    g.tensors[-1].offset = 2**64 - 32


@evil
def tensor_offset_unaligned(g: Gguf) -> None:
    g.tensors[3].offset = 4


@evil
def tensors_overlap(g: Gguf) -> None:
    # a file that is two models, depending on who reads it
    g.tensors[5].offset = 0
