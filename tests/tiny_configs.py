"""The sizes of the tiny random models that the tests compare with the oracle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a tiny model; field names follow config.json, vision ones prefixed with v_."""

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    cross_attention_layers: tuple[int, ...] = (1, 3, 6)
    vocab_size: int = 504
    rope_theta: float = 500000.0
    rope_scaling: Mapping[str, Any] | None = None
    v_hidden_size: int = 160
    v_intermediate_size: int = 320
    v_attention_heads: int = 2
    v_num_hidden_layers: int = 4
    v_num_global_layers: int = 2
    v_intermediate_layers_indices: tuple[int, ...] = (1, 3)
    image_size: int = 112
    patch_size: int = 14
    max_num_tiles: int = 4

    @property
    def aspect_ratios(self) -> tuple[tuple[int, int], ...]:
        """All (rows, cols) of at most max_num_tiles tiles, in the order of their ids, which start at 1."""
        sizes = range(1, self.max_num_tiles + 1)
        return tuple((rows, cols) for rows in sizes for cols in sizes if rows * cols <= self.max_num_tiles)

    @property
    def n_positions(self) -> int:
        """Patches of a tile plus its class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def vision_output_dim(self) -> int:
        return self.v_hidden_size * (1 + len(self.v_intermediate_layers_indices))

    @property
    def image_token(self) -> int:
        return self.vocab_size


# What each one adds is said beside it. A square grid of n patches gives n^2 + 1 positions, which is 1, 2 or 5 modulo 8:
# the tower pads by 7, 6 or 3 rows a tile, and never by none. All three occur here.
CONFIGS: dict[str, TinyConfig] = {
    # vision heads of 80 and 7 padding rows a tile, as in the real model; rows of whole Q4_K blocks in the text part
    "base": TinyConfig(rope_scaling=LLAMA3_ROPE),
    # multi-query attention; state 0 handed out; 6 padding rows; small enough for stored goldens
    "small": TinyConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=6,
        num_key_value_heads=1,
        cross_attention_layers=(2, 4),
        vocab_size=320,
        rope_scaling=LLAMA3_ROPE,
        v_hidden_size=64,
        v_intermediate_size=128,
        v_attention_heads=4,
        v_num_hidden_layers=3,
        v_num_global_layers=1,
        v_intermediate_layers_indices=(0, 2),
        image_size=42,
    ),
    # cross layers directly after one another, two and three in a row, up to the last place allowed; no GQA; no rope
    # scaling; every state handed out
    "adjacent": TinyConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=9,
        num_key_value_heads=4,
        cross_attention_layers=(1, 2, 5, 6, 7),
        vocab_size=288,
        v_hidden_size=64,
        v_intermediate_size=96,
        v_attention_heads=2,
        v_num_hidden_layers=3,
        v_num_global_layers=2,
        v_intermediate_layers_indices=(0, 1, 2),
        image_size=56,
    ),
    # at most two tiles, 3 padding rows, one state handed out, a single global layer, theta of Llama 2
    "two_tiles": TinyConfig(
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        cross_attention_layers=(3,),
        vocab_size=300,
        rope_theta=10000.0,
        v_hidden_size=64,
        v_intermediate_size=64,
        v_attention_heads=2,
        v_num_hidden_layers=3,
        v_num_global_layers=1,
        v_intermediate_layers_indices=(2,),
        image_size=28,
        max_num_tiles=2,
    ),
    # at most three tiles; rows that are no whole number of 32-blocks, an odd vocabulary, heads of 16
    "odd_rows": TinyConfig(
        hidden_size=80,
        intermediate_size=112,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=1,
        cross_attention_layers=(1, 4),
        vocab_size=333,
        rope_scaling=LLAMA3_ROPE,
        v_hidden_size=48,
        v_intermediate_size=80,
        v_attention_heads=3,
        v_num_hidden_layers=2,
        v_num_global_layers=2,
        v_intermediate_layers_indices=(1,),
        image_size=70,
        max_num_tiles=3,
    ),
    # up to six tiles (14 canvases), patches of 8, four states, rope scaling that acts within a few tokens
    "six_tiles": TinyConfig(
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=3,
        cross_attention_layers=(2, 3),
        vocab_size=352,
        rope_scaling=LLAMA3_ROPE | {"original_max_position_embeddings": 16, "factor": 4.0},
        v_hidden_size=64,
        v_intermediate_size=128,
        v_attention_heads=2,
        v_num_hidden_layers=5,
        v_num_global_layers=3,
        v_intermediate_layers_indices=(0, 1, 3, 4),
        image_size=32,
        patch_size=8,
        max_num_tiles=6,
    ),
}

# The real model's image: 1601 positions a tile, 6404 keys a picture of four tiles. Too slow for every test.
REAL_GRID = TinyConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    cross_attention_layers=(1, 2),
    vocab_size=288,
    rope_scaling=LLAMA3_ROPE,
    v_hidden_size=32,
    v_intermediate_size=64,
    v_attention_heads=2,
    v_num_hidden_layers=1,
    v_num_global_layers=1,
    v_intermediate_layers_indices=(0,),
    image_size=560,
)
ALL_CONFIGS = CONFIGS | {"real_grid": REAL_GRID}
