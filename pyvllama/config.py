"""What a checkpoint's JSON files say about the model, validated once and for all.

Names here are Hugging Face's. Everything that later code relies on (divisibility, the order of the layers, the grids of
tiles) is checked here, so that nothing behind this border has to doubt a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyvllama.errors import ConfigError, FormatError
from pyvllama.fields import Fields, Triple, as_mapping

__all__ = ["Llama3Rope", "MllamaConfig", "PreprocessorConfig", "TextConfig", "VisionConfig", "aspect_ratios"]


EXTRA_EMBEDDING_ROWS = 8
"""embed_tokens has this many rows more than lm_head; the first of them is `<|image|>`."""


_MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
_MAX_TILES = 64


@dataclass(frozen=True)
class Llama3Rope:
    """The `llama3` stretching of rotary frequencies (long wave lengths by `factor`, short ones not at all)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class TextConfig:
    """The text decoder: `num_hidden_layers` counts self-attention and cross-attention layers together."""

    vocab_size: int
    """Rows of lm_head; the embedding has `EXTRA_EMBEDDING_ROWS` more."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    cross_attention_layers: tuple[int, ...]
    """Ascending indices among the `num_hidden_layers`; never the first layer, never the last."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def n_embedding_rows(self) -> int:
        """Rows of embed_tokens, which is also the vocabulary of the text GGUF."""
        return self.vocab_size + EXTRA_EMBEDDING_ROWS

    @property
    def self_attention_layers(self) -> tuple[int, ...]:
        """HF indices of the layers that the text GGUF holds, in order."""
        cross = set(self.cross_attention_layers)
        return tuple(i for i in range(self.num_hidden_layers) if i not in cross)

    @classmethod
    def from_hf_json(cls, config: Mapping[str, Any]) -> TextConfig:
        """Read the `text_config` of a config.json.

        Raises:
            ConfigError: with all missing keys in one message, or naming the unsupported value.
        """
        r = Fields(config, "text_config")
        text = r.build(
            lambda: cls(
                vocab_size=r.count("vocab_size"),
                hidden_size=r.count("hidden_size"),
                intermediate_size=r.count("intermediate_size"),
                num_hidden_layers=r.count("num_hidden_layers", most=_MAX_LAYERS),
                num_attention_heads=r.count("num_attention_heads", "attention_heads"),
                num_key_value_heads=r.count("num_key_value_heads"),
                cross_attention_layers=r.indices("cross_attention_layers"),
                max_position_embeddings=r.count("max_position_embeddings"),
                rms_norm_eps=r.number("rms_norm_eps"),
                rope_theta=_rope_theta(r),
                rope_scaling=_rope_scaling(r),
                tie_word_embeddings=bool(r.optional("tie_word_embeddings", False)),
                bos_token_id=r.token_id("bos_token_id"),
                eos_token_ids=r.token_ids("eos_token_id"),
                pad_token_id=r.token_id("pad_token_id"),
            )
        )
        r.require_value("hidden_act", ("silu",), default="silu")
        text._validate(r)
        return text

    def _validate(self, r: Fields) -> None:
        r.divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        r.divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads)
        if self.head_dim % 2:
            r.refuse("hidden_size / num_attention_heads", self.head_dim, "an even number (rotary pairs)")
        if (head_dim := r.optional("head_dim", None)) not in (None, self.head_dim):
            r.refuse("head_dim", head_dim, f"hidden_size / num_attention_heads = {self.head_dim}")
        layers = self.cross_attention_layers
        if not layers:
            r.refuse("cross_attention_layers", [], "at least one layer (without, this is a plain text model)")
        if list(layers) != sorted(set(layers)) or layers[-1] >= self.num_hidden_layers:
            r.refuse("cross_attention_layers", list(layers), f"ascending indices below {self.num_hidden_layers}")
        if layers[0] == 0:
            r.refuse("cross_attention_layers", list(layers), "a self-attention layer before the first of them (not 0)")
        if layers[-1] == self.num_hidden_layers - 1:
            r.refuse("cross_attention_layers", list(layers), "a self-attention layer after the last of them")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: a stack of local layers, then a stack of gated global layers, over tiles of patches."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    """Local layers (HF `transformer`)."""
    num_global_layers: int
    attention_heads: int
    image_size: int
    """Edge of a tile in pixels."""
    patch_size: int
    max_num_tiles: int
    supported_aspect_ratios: tuple[tuple[int, int], ...]
    """(rows, cols) of tiles; aspect_ratio_id = position + 1."""
    intermediate_layers_indices: tuple[int, ...]
    """Meta's meaning: the states ENTERING local layer i are kept."""
    vision_output_dim: int
    norm_eps: float

    @property
    def n_positions(self) -> int:
        """Patches of a tile and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_hf_json(cls, config: Mapping[str, Any]) -> VisionConfig:
        """Read the `vision_config` of a config.json.

        Raises:
            ConfigError: with all missing keys in one message, or naming the unsupported value.
        """
        r = Fields(config, "vision_config")
        vision = r.build(
            lambda: cls(
                hidden_size=r.count("hidden_size"),
                intermediate_size=r.count("intermediate_size"),
                num_hidden_layers=r.count("num_hidden_layers", most=_MAX_LAYERS),
                num_global_layers=r.count("num_global_layers", most=_MAX_LAYERS),
                attention_heads=r.count("attention_heads", "num_attention_heads"),
                image_size=r.count("image_size"),
                patch_size=r.count("patch_size"),
                max_num_tiles=r.count("max_num_tiles", most=_MAX_TILES),
                supported_aspect_ratios=r.pairs("supported_aspect_ratios"),
                intermediate_layers_indices=r.indices("intermediate_layers_indices"),
                vision_output_dim=r.count("vision_output_dim"),
                norm_eps=r.number("norm_eps"),
            )
        )
        r.require_value("hidden_act", ("gelu",), default="gelu")
        r.require_value("num_channels", (3,), default=3)
        vision._validate(r)
        return vision

    def _validate(self, r: Fields) -> None:
        r.divides("attention_heads", self.attention_heads, "hidden_size", self.hidden_size)
        r.divides("patch_size", self.patch_size, "image_size", self.image_size)
        if self.supported_aspect_ratios != aspect_ratios(self.max_num_tiles):
            r.refuse(
                "supported_aspect_ratios",
                [list(x) for x in self.supported_aspect_ratios],
                f"all grids of at most {self.max_num_tiles} tiles in the image processor's order",
            )
        kept = self.intermediate_layers_indices
        if list(kept) != sorted(set(kept)) or (kept and kept[-1] >= self.num_hidden_layers):
            r.refuse("intermediate_layers_indices", list(kept), f"ascending indices below {self.num_hidden_layers}")
        if (dim := self.hidden_size * (1 + len(kept))) != self.vision_output_dim:
            r.refuse("vision_output_dim", self.vision_output_dim, f"{dim} = hidden_size * (1 + intermediate layers)")


@dataclass(frozen=True)
class MllamaConfig:
    """Both halves of the model, and the token that stands for an image."""

    text: TextConfig
    vision: VisionConfig
    image_token_index: int

    @classmethod
    def from_hf_json(cls, config: Mapping[str, Any]) -> MllamaConfig:
        """Read a whole config.json of an `MllamaForConditionalGeneration`.

        Raises:
            ConfigError: another model type, missing keys (all in one message), unsupported values.
        """
        if config.get("model_type") != "mllama":
            raise ConfigError(
                f"config.json: model_type is {config.get('model_type')!r}, not 'mllama' (Llama 3.2 Vision): "
                "pyvllama converts no other architecture"
            )
        r = Fields(config, "config.json")
        sections = r.build(lambda: (r.mapping("text_config"), r.mapping("vision_config")))
        text, vision = TextConfig.from_hf_json(sections[0]), VisionConfig.from_hf_json(sections[1])
        image_token_index = r.build(lambda: r.whole("image_token_index", "image_token_id"))
        if image_token_index >= text.n_embedding_rows:
            r.refuse("image_token_index", image_token_index, f"a row of embed_tokens, below {text.n_embedding_rows}")
        return cls(text=text, vision=vision, image_token_index=image_token_index)


@dataclass(frozen=True)
class PreprocessorConfig:
    """How a picture becomes tiles."""

    tile_size: int
    """Edge of a tile in pixels."""
    max_num_tiles: int
    resample: int
    """PIL's number of the filter (2: bilinear)."""
    rescale_factor: float
    image_mean: Triple
    image_std: Triple

    @classmethod
    def from_hf_json(cls, config: Mapping[str, Any]) -> PreprocessorConfig:
        """Read a preprocessor_config.json, or a processor_config.json as transformers 5 saves it.

        Raises:
            ConfigError: missing keys (all in one message), or a step that is switched off.
        """
        r = Fields(config, "preprocessor_config.json")
        if "image_processor" in config:
            r = Fields(as_mapping(config["image_processor"], "image_processor", "processor_config.json"), r.where)
        result = r.build(
            lambda: cls(
                tile_size=_square(r),
                max_num_tiles=r.count("max_image_tiles", most=_MAX_TILES),
                resample=int(r.optional("resample", 2)),
                rescale_factor=r.number("rescale_factor"),
                image_mean=r.triple("image_mean"),
                image_std=r.triple("image_std"),
            )
        )
        for step in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
            r.require_value(step, (True,), default=True)
        if result.resample not in range(6):
            r.refuse("resample", result.resample, "one of PIL's filters, 0 to 5")
        if 0.0 in result.image_std:
            r.refuse("image_std", list(result.image_std), "numbers other than 0")
        return result

    def to_gguf(self) -> dict[str, tuple[str, Any]]:
        """Keys of the mmproj: name -> (GGUF type, value). `from_gguf` is the inverse up to float32 mean and std."""
        mean, std = list(self.image_mean), list(self.image_std)
        values = (self.tile_size, self.max_num_tiles, mean, std, self.resample, self.rescale_factor)
        return {key: (kind, value) for (key, kind), value in zip(_GGUF_KEYS, values, strict=True)}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> PreprocessorConfig:
        """Read the keys that `to_gguf` lists from an mmproj's metadata.

        Raises:
            FormatError: keys are missing or of another type.
        """
        r = Fields(metadata, "mmproj metadata")
        size, tiles, mean, std, resample, rescale = (key for key, _ in _GGUF_KEYS)
        try:
            return r.build(
                lambda: cls(
                    tile_size=r.count(size),
                    max_num_tiles=r.count(tiles, most=_MAX_TILES),
                    resample=r.whole(resample),
                    rescale_factor=r.number(rescale),
                    image_mean=r.triple(mean),
                    image_std=r.triple(std),
                )
            )
        except ConfigError as e:
            raise FormatError(str(e)) from e


_GGUF_KEYS = (
    ("clip.vision.image_size", "u32"),
    ("clip.mllama.max_num_tiles", "u32"),
    ("clip.vision.image_mean", "f32[]"),
    ("clip.vision.image_std", "f32[]"),
    ("clip.mllama.preprocessor.resample", "u32"),
    ("clip.mllama.preprocessor.rescale_factor", "f64"),
)


def aspect_ratios(max_num_tiles: int) -> tuple[tuple[int, int], ...]:
    """All grids (rows, cols) of at most `max_num_tiles` tiles, in the order in which HF numbers them from 1."""
    edge = range(1, max_num_tiles + 1)
    return tuple((rows, cols) for rows in edge for cols in edge if rows * cols <= max_num_tiles)


def _square(r: Fields) -> int:
    size = r.mapping("size")
    height, width = size.get("height"), size.get("width")
    if height is not None and height != width:
        r.refuse("size", dict(size), "square tiles")
    return Fields(size, f"{r.where}: size", r.missing).count("height")


def _rope(r: Fields) -> Mapping[str, Any]:
    """`rope_parameters` of transformers 5, or `rope_scaling` of older ones with their `rope_theta` put in."""
    if (new := r.optional("rope_parameters", None)) is not None:
        return as_mapping(new, "rope_parameters", r.where)
    scaling = r.optional("rope_scaling", None)
    old = dict(as_mapping(scaling, "rope_scaling", r.where)) if scaling is not None else {}
    if (theta := r.optional("rope_theta", None)) is not None:
        old["rope_theta"] = theta
    return old


def _rope_theta(r: Fields) -> float:
    return Fields(_rope(r), r.where, r.missing).number("rope_theta")


def _rope_scaling(r: Fields) -> Llama3Rope | None:
    rope = Fields(_rope(r), f"{r.where}: rope", r.missing)
    kind = rope.optional("rope_type", rope.optional("type", "default"))
    if kind in ("default", None):
        return None
    if kind != "llama3":
        rope.refuse("rope_type", kind, "'llama3' or 'default'")
    scaling = Llama3Rope(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.count("original_max_position_embeddings"),
    )
    if not rope.missing and scaling.high_freq_factor <= scaling.low_freq_factor:
        rope.refuse("high_freq_factor", scaling.high_freq_factor, f"more than {scaling.low_freq_factor}")
    return scaling
