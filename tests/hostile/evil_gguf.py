"""Evil GGUF files, one function each; its comment says which bug it remembers. All start from a correct mmproj.

Most kinds come from llama.cpp's tests/test-gguf.cpp and from the flaws found in GGUF readers in 2024 (CVE-2024-21802,
-21825, -21836, -23496, -23605: unchecked counts and lengths multiplied into too small allocations).
"""

import math
import struct
from collections.abc import Callable

import gguf_bytes as gb
from gguf_bytes import Gguf

EVIL: dict[str, Callable[[Gguf], bytes | None]] = {}
STRUCTURAL: set[str] = set()  # what any reader must refuse; the rest is refused for what the file means


def evil(structural: bool) -> Callable[[Callable[[Gguf], bytes | None]], Callable[[Gguf], bytes | None]]:
    """Register a maker: it changes the parts, or returns the bytes to write."""

    def register(maker: Callable[[Gguf], bytes | None]) -> Callable[[Gguf], bytes | None]:
        EVIL[maker.__name__] = maker
        if structural:
            STRUCTURAL.add(maker.__name__)
        return maker

    return register


# --- the container ---


@evil(structural=True)
def empty_file(g: Gguf) -> bytes:
    # a download that never began
    return b""


@evil(structural=True)
def no_gguf_at_all(g: Gguf) -> bytes:
    # a web page saved under the model's name
    return b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 20


@evil(structural=True)
def git_lfs_pointer(g: Gguf) -> bytes:
    # what a clone without git-lfs leaves
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"


@evil(structural=True)
def wrong_magic(g: Gguf) -> None:
    g.magic = b"GGML"


@evil(structural=True)
def version_1(g: Gguf) -> None:
    # counts were 32 bits wide in version 1
    g.version = 1


@evil(structural=True)
def version_of_the_future(g: Gguf) -> None:
    g.version = 99


@evil(structural=True)
def big_endian(g: Gguf) -> bytes:
    raw = g.to_bytes()
    return raw[:4] + struct.pack(">I", 3) + raw[8:]


@evil(structural=True)
def magic_alone(g: Gguf) -> bytes:
    return b"GGUF"


@evil(structural=True)
def truncated_in_the_keys(g: Gguf) -> bytes:
    return g.to_bytes()[:200]


@evil(structural=True)
def truncated_in_the_tensor_directory(g: Gguf) -> bytes:
    return g.header()[:-7]


@evil(structural=True)
def truncated_before_the_data(g: Gguf) -> bytes:
    return g.header()


@evil(structural=True)
def truncated_in_the_data(g: Gguf) -> bytes:
    # an interrupted download or a full disk
    raw = g.to_bytes()
    return raw[: len(raw) - len(g.tensors[-1].data) // 2 - 32]


@evil(structural=True)
def more_keys_than_there_are(g: Gguf) -> None:
    g.n_keys_claimed = len(g.keys) + 1


@evil(structural=True)
def absurd_number_of_keys(g: Gguf) -> None:
    # CVE-2024-23496: n_kv * sizeof(kv) wraps
    g.n_keys_claimed = 2**61


@evil(structural=True)
def negative_number_of_keys(g: Gguf) -> None:
    g.n_keys_claimed = 2**64 - 1


@evil(structural=True)
def more_tensors_than_there_are(g: Gguf) -> None:
    g.n_tensors_claimed = len(g.tensors) + 1


@evil(structural=True)
def absurd_number_of_tensors(g: Gguf) -> None:
    # CVE-2024-21836: n_tensors * sizeof(info) wraps
    g.n_tensors_claimed = 2**60


@evil(structural=True)
def negative_number_of_tensors(g: Gguf) -> None:
    g.n_tensors_claimed = 2**64 - 5


# --- keys ---


@evil(structural=True)
def key_longer_than_the_file(g: Gguf) -> bytes:
    # CVE-2024-23605: length + 1 wraps to 0 before the allocation
    return g.magic + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 1) + b"general.name"


@evil(structural=True)
def string_longer_than_the_file(g: Gguf) -> None:
    g.key("general.name").payload = struct.pack("<Q", 2**40) + b"abc"


@evil(structural=True)
def array_longer_than_the_file(g: Gguf) -> None:
    # CVE-2024-21825: n * sizeof(type) wraps
    g.set("clip.mllama.supported_aspect_ratios", gb.ARRAY, gb.array(gb.I32, [], claimed=2**62))


@evil(structural=True)
def array_of_strings_longer_than_the_file(g: Gguf) -> None:
    # CVE-2024-21802
    g.set("general.tags", gb.ARRAY, gb.array(gb.STRING, [gb.string("a")], claimed=2**61))


@evil(structural=True)
def array_of_arrays(g: Gguf) -> None:
    # nesting deep enough ends a recursive reader's stack; no reader allows it
    nested = gb.array(gb.I32, [gb.scalar(gb.I32, 1)])
    for _ in range(2000):
        nested = gb.array(gb.ARRAY, [nested])
    g.set("general.tags", gb.ARRAY, nested)


@evil(structural=True)
def unknown_kind_of_value(g: Gguf) -> None:
    g.set("general.tags", 13, bytes(8))


@evil(structural=True)
def key_twice(g: Gguf) -> None:
    # two readers may believe different ones
    g.keys.append(gb.Key("clip.vision.image_size", gb.U32, gb.scalar(gb.U32, 14)))


@evil(structural=True)
def empty_key(g: Gguf) -> None:
    # ggml asserts that a key has a name, which ends the process
    g.keys.append(gb.Key("", gb.U32, gb.scalar(gb.U32, 1)))


@evil(structural=True)
def alignment_zero(g: Gguf) -> None:
    # modulo by zero
    g.set("general.alignment", gb.U32, gb.scalar(gb.U32, 0))


@evil(structural=True)
def alignment_no_power_of_two(g: Gguf) -> None:
    g.set("general.alignment", gb.U32, gb.scalar(gb.U32, 48))


@evil(structural=True)
def alignment_a_string(g: Gguf) -> None:
    # ggml asserts on the kind of this one key, which ends the process
    g.set("general.alignment", gb.STRING, gb.string("32"))


# --- the tensor directory ---


def first(g: Gguf) -> gb.Tensor:
    return g.tensor("xattn.blk.3.attn_q.weight")


@evil(structural=True)
def tensor_twice(g: Gguf) -> None:
    g.tensors.append(gb.Tensor("mm.0.bias", [1], gb.TYPE_F32, bytes(32)))


@evil(structural=True)
def tensor_name_too_long(g: Gguf) -> None:
    # ggml's names end at 63 bytes; a reader that cuts them sees duplicates
    g.tensors.append(gb.Tensor("v." + "x" * 80, [8], gb.TYPE_F32, bytes(32)))


@evil(structural=True)
def tensor_of_five_dimensions(g: Gguf) -> None:
    # writes past ne[4]
    g.tensors.append(gb.Tensor("v.extra", [1, 1, 1, 1, 8], gb.TYPE_F32, bytes(32)))


@evil(structural=True)
def tensor_dimensions_overflow(g: Gguf) -> None:
    # 2^32 * 2^32 elements wrap to 0, which any file can hold
    first(g).dims = [2**32, 2**32]


@evil(structural=True)
def tensor_dimension_negative(g: Gguf) -> None:
    first(g).dims = [2**64 - 128, 128]


@evil(structural=True)
def tensor_bytes_overflow(g: Gguf) -> None:
    # the number of elements fits 63 bits, that of bytes does not fit 64
    first(g).dims = [2**62, 1]


@evil(structural=True)
def tensor_of_unknown_type(g: Gguf) -> None:
    first(g).kind = 250


@evil(structural=True)
def tensor_of_removed_type(g: Gguf) -> None:
    # Q4_2 had number 4; its block size in ggml's table is 0 today: a division by zero
    first(g).kind = 4


@evil(structural=True)
def tensor_rows_of_broken_blocks(g: Gguf) -> None:
    # rows of 20 elements in Q8_0's blocks of 32
    first(g).kind, first(g).dims = 8, [20, 8]


@evil(structural=True)
def tensor_offset_past_the_end(g: Gguf) -> None:
    g.tensors[-1].offset = 2**40


@evil(structural=True)
def tensor_offset_wraps(g: Gguf) -> None:
    # offset + size wraps to a small number
    g.tensors[-1].offset = 2**64 - 32


@evil(structural=True)
def tensor_offset_unaligned(g: Gguf) -> None:
    g.tensors[3].offset = 4


@evil(structural=True)
def tensors_overlap(g: Gguf) -> None:
    # a file that is two models, depending on who reads it
    g.tensors[5].offset = 0


# --- a sound container with the wrong things in it ---


@evil(structural=False)
def another_architecture(g: Gguf) -> None:
    g.set("general.architecture", gb.STRING, gb.string("llama"))


@evil(structural=False)
def another_projector(g: Gguf) -> None:
    # an mmproj of another model family
    g.set("clip.projector_type", gb.STRING, gb.string("pixtral"))


@evil(structural=False)
def no_architecture(g: Gguf) -> None:
    g.drop_key("general.architecture")


@evil(structural=False)
def no_vision_encoder(g: Gguf) -> None:
    g.set("clip.has_vision_encoder", gb.BOOL, gb.scalar(gb.BOOL, False))


@evil(structural=False)
def format_version_of_the_future(g: Gguf) -> None:
    g.set("clip.mllama.format_version", gb.U32, gb.scalar(gb.U32, 2))


def missing_key(name: str) -> None:
    def maker(g: Gguf) -> None:
        g.drop_key(name)

    maker.__name__ = f"without_{name.replace('.', '_')}"
    evil(structural=False)(maker)


for key in (
    "clip.vision.image_size",
    "clip.vision.attention.head_count",
    "clip.mllama.cross_attention_layers",
    "clip.mllama.intermediate_layers_indices",
    "clip.mllama.text.attention.head_count_kv",
    "clip.mllama.image_token_id",
    "clip.mllama.pairing_hash",
):
    missing_key(key)


def changed_u32(name: str, value: int, why: str) -> None:
    def maker(g: Gguf) -> None:
        g.set(name, gb.U32, gb.scalar(gb.U32, value))

    maker.__name__ = f"{name.removeprefix('clip.').replace('.', '_')}_{value}"
    maker.__doc__ = why
    evil(structural=False)(maker)


changed_u32("clip.vision.patch_size", 0, "a division by zero")
changed_u32("clip.vision.patch_size", 13, "no whole number of patches")
changed_u32("clip.vision.image_size", 2**31, "its square wraps")
changed_u32("clip.vision.attention.head_count", 0, "a division by zero")
changed_u32("clip.vision.attention.head_count", 7, "heads of no whole number of channels")
changed_u32("clip.vision.block_count", 2**32 - 1, "an endless loop over layers")
changed_u32("clip.vision.block_count", 2, "layers left over; an intermediate state of a layer that is not there")
changed_u32("clip.vision.embedding_length", 32, "every shape disagrees")
changed_u32("clip.mllama.global_block_count", 4, "layers that are not there")
changed_u32("clip.mllama.max_num_tiles", 0, "no tile at all")
changed_u32("clip.mllama.max_num_tiles", 2**31, "products wrap")
changed_u32("clip.mllama.text.attention.head_count_kv", 0, "a division by zero")
changed_u32("clip.mllama.text.attention.head_count_kv", 3, "heads that do not divide")
changed_u32("clip.mllama.text.block_count", 3, "cross-attention layer 3 of 3")
changed_u32("clip.mllama.text.block_count", 4, "a cross-attention layer after all self-attention layers")
changed_u32("clip.mllama.image_token_id", 2**32 - 1, "a token id that is negative as int32")


@evil(structural=False)
def image_size_is_a_string(g: Gguf) -> None:
    # ggml asserts when a key is read as another kind than it has
    g.set("clip.vision.image_size", gb.STRING, gb.string("28"))


@evil(structural=False)
def image_size_is_signed(g: Gguf) -> None:
    g.set("clip.vision.image_size", gb.I32, gb.scalar(gb.I32, 28))


@evil(structural=False)
def architecture_is_a_number(g: Gguf) -> None:
    g.set("general.architecture", gb.U32, gb.scalar(gb.U32, 1))


@evil(structural=False)
def cross_layers_are_no_array(g: Gguf) -> None:
    g.set("clip.mllama.cross_attention_layers", gb.I32, gb.scalar(gb.I32, 3))


@evil(structural=False)
def cross_layers_are_floats(g: Gguf) -> None:
    g.set("clip.mllama.cross_attention_layers", gb.ARRAY, gb.array(gb.F32, [gb.scalar(gb.F32, 3)]))


def changed_i32s(name: str, label: str, values: list[int]) -> None:
    def maker(g: Gguf) -> None:
        g.set(name, gb.ARRAY, gb.array(gb.I32, [gb.scalar(gb.I32, v) for v in values]))

    maker.__name__ = label
    evil(structural=False)(maker)


changed_i32s("clip.mllama.cross_attention_layers", "cross_layers_empty", [])
changed_i32s("clip.mllama.cross_attention_layers", "cross_layers_negative", [-1])
changed_i32s("clip.mllama.cross_attention_layers", "cross_layer_before_all_others", [0])
changed_i32s("clip.mllama.cross_attention_layers", "cross_layers_twice_the_same", [3, 3])
changed_i32s("clip.mllama.cross_attention_layers", "cross_layers_descending", [3, 2])
changed_i32s("clip.mllama.cross_attention_layers", "cross_layers_past_the_end", [500])
changed_i32s("clip.mllama.intermediate_layers_indices", "intermediate_layer_past_the_end", [3])
changed_i32s("clip.mllama.intermediate_layers_indices", "intermediate_layer_negative", [-1])
changed_i32s("clip.mllama.intermediate_layers_indices", "intermediate_layers_too_many", [1, 2])
changed_i32s("clip.mllama.supported_aspect_ratios", "aspect_ratios_odd_in_number", [1, 1, 1])
changed_i32s("clip.mllama.supported_aspect_ratios", "aspect_ratios_too_large", [1, 1, 1, 2, 2, 2])
changed_i32s("clip.mllama.supported_aspect_ratios", "aspect_ratios_negative", [1, 1, -1, -2, 2, 1])
changed_i32s("clip.mllama.supported_aspect_ratios", "aspect_ratios_empty", [])
changed_i32s("clip.mllama.supported_aspect_ratios", "aspect_ratios_one_fewer_than_rows", [1, 1, 1, 2])


@evil(structural=False)
def epsilon_not_a_number(g: Gguf) -> None:
    g.set("clip.vision.attention.layer_norm_epsilon", gb.F32, gb.scalar(gb.F32, math.nan))


@evil(structural=False)
def missing_tensor(g: Gguf) -> None:
    g.tensors.remove(first(g))


@evil(structural=False)
def unknown_tensor(g: Gguf) -> None:
    # a part that nobody would compute: a file of a newer version or of another model
    g.tensors.append(gb.Tensor("v.blk.0.attn_q.bias", [8], gb.TYPE_F32, bytes(32)))


@evil(structural=False)
def transposed_tensor(g: Gguf) -> None:
    g.tensor("xattn.blk.3.ffn_up.weight").dims.reverse()


@evil(structural=False)
def tensor_with_a_dimension_more(g: Gguf) -> None:
    g.tensor("mm.0.bias").dims = [64, 2]


@evil(structural=False)
def norm_in_another_type(g: Gguf) -> None:
    # read as F32 it would reach past its data
    norm = g.tensor("xattn.blk.3.attn_norm.weight")
    norm.kind, norm.data = gb.TYPE_F16, norm.data[: len(norm.data) // 2]


@evil(structural=False)
def vision_matrix_of_integers(g: Gguf) -> None:
    # same size as F32, but no type that ggml multiplies: it calls a null pointer while computing
    g.tensor("v.blk.0.attn_q.weight").kind = 26


@evil(structural=False)
def cross_matrix_of_integers(g: Gguf) -> None:
    # the same, first noticed when text is decoded
    first(g).kind = 26


@evil(structural=False)
def table_of_integers(g: Gguf) -> None:
    # position embeddings are read when the first picture is encoded; the file must be refused before
    g.tensor("v.position_embd.weight").kind = 26


@evil(structural=False)
def gate_of_two_values(g: Gguf) -> None:
    g.tensor("xattn.blk.3.gate_attn").dims = [2]


@evil(structural=False)
def gate_not_a_number(g: Gguf) -> None:
    gate = g.tensor("xattn.blk.3.gate_attn")
    gate.data = gb.scalar(gb.F32, math.nan) + gate.data[4:]
