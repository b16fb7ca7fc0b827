"""Sound GGUF containers with the wrong things in them, one maker each: refused for what the file means.

All start from a correct mmproj; a comment says which bug the maker remembers.
"""

import math
from collections.abc import Callable

import gguf_bytes as gb
from gguf_bytes import Gguf

Maker = Callable[[Gguf], None]
MMPROJS: dict[str, Maker] = {}


def evil(maker: Maker) -> Maker:
    MMPROJS[maker.__name__] = maker
    return maker


def first(g: Gguf) -> gb.Tensor:
    return g.tensor("xattn.blk.3.attn_q.weight")


@evil
def another_architecture(g: Gguf) -> None:
    g.set("general.architecture", gb.STRING, gb.string("llama"))


@evil
def another_projector(g: Gguf) -> None:
    # an mmproj of another model family
    g.set("clip.projector_type", gb.STRING, gb.string("pixtral"))


@evil
def no_architecture(g: Gguf) -> None:
    g.drop_key("general.architecture")


@evil
def no_vision_encoder(g: Gguf) -> None:
    g.set("clip.has_vision_encoder", gb.BOOL, gb.scalar(gb.BOOL, False))


@evil
def format_version_of_the_future(g: Gguf) -> None:
    g.set("clip.mllama.format_version", gb.U32, gb.scalar(gb.U32, 2))


def missing_key(name: str) -> None:
    def maker(g: Gguf) -> None:
        g.drop_key(name)

    maker.__name__ = f"without_{name.replace('.', '_')}"
    evil(maker)


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
    evil(maker)


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


@evil
def image_size_is_a_string(g: Gguf) -> None:
    # ggml asserts when a key is read as another kind than it has
    g.set("clip.vision.image_size", gb.STRING, gb.string("28"))


@evil
def image_size_is_signed(g: Gguf) -> None:
    g.set("clip.vision.image_size", gb.I32, gb.scalar(gb.I32, 28))


@evil
def architecture_is_a_number(g: Gguf) -> None:
    g.set("general.architecture", gb.U32, gb.scalar(gb.U32, 1))


@evil
def cross_layers_are_no_array(g: Gguf) -> None:
    g.set("clip.mllama.cross_attention_layers", gb.I32, gb.scalar(gb.I32, 3))


@evil
def cross_layers_are_floats(g: Gguf) -> None:
    g.set("clip.mllama.cross_attention_layers", gb.ARRAY, gb.array(gb.F32, [gb.scalar(gb.F32, 3)]))


def changed_i32s(name: str, label: str, values: list[int]) -> None:
    def maker(g: Gguf) -> None:
        g.set(name, gb.ARRAY, gb.array(gb.I32, [gb.scalar(gb.I32, v) for v in values]))

    maker.__name__ = label
    evil(maker)


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


@evil
def epsilon_not_a_number(g: Gguf) -> None:
    g.set("clip.vision.attention.layer_norm_epsilon", gb.F32, gb.scalar(gb.F32, math.nan))


@evil
def missing_tensor(g: Gguf) -> None:
    g.tensors.remove(first(g))


@evil
def unknown_tensor(g: Gguf) -> None:
    # a part that nobody would compute: a file of a newer version or of another model
    g.tensors.append(gb.Tensor("v.blk.0.attn_q.bias", [8], gb.TYPE_F32, bytes(32)))


@evil
def transposed_tensor(g: Gguf) -> None:
    g.tensor("xattn.blk.3.ffn_up.weight").dims.reverse()


@evil
def tensor_with_a_dimension_more(g: Gguf) -> None:
    g.tensor("mm.0.bias").dims = [64, 2]


@evil
def norm_in_another_type(g: Gguf) -> None:
    # read as F32 it would reach past its data
    norm = g.tensor("xattn.blk.3.attn_norm.weight")
    norm.kind, norm.data = gb.TYPE_F16, norm.data[: len(norm.data) // 2]


@evil
def vision_matrix_of_integers(g: Gguf) -> None:
    # same size as F32, but no type that ggml multiplies: it calls a null pointer while computing
    g.tensor("v.blk.0.attn_q.weight").kind = 26


@evil
def cross_matrix_of_integers(g: Gguf) -> None:
    # the same, first noticed when text is decoded
    first(g).kind = 26


@evil
def table_of_integers(g: Gguf) -> None:
    # position embeddings are read when the first picture is encoded; the file must be refused before
    g.tensor("v.position_embd.weight").kind = 26


@evil
def gate_of_two_values(g: Gguf) -> None:
    g.tensor("xattn.blk.3.gate_attn").dims = [2]


@evil
def gate_not_a_number(g: Gguf) -> None:
    gate = g.tensor("xattn.blk.3.gate_attn")
    gate.data = gb.scalar(gb.F32, math.nan) + gate.data[4:]
