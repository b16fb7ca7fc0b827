"""Meta's form of a tiny checkpoint: the way back from Hugging Face's names and layouts, and `torch.save` by hand.

Written from Meta's model code alone, on purpose without a look into pyvllama's table: what the converter reads here
must give the numbers that were in the Hugging Face checkpoint.
"""

import base64
import json
import math
import re
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import tiny_tokenizer
from tiny_configs import CONFIGS, TinyConfig

# The vision tower as Meta's code fixes it (16 heads, 5 intermediate states), six self-attention layers and two
# cross-attention layers where Meta's schedule puts them: before layers 2 and 5, so 2 and 6 in one numbering.
CONFIG = replace(
    CONFIGS["small"],
    num_hidden_layers=8,
    num_key_value_heads=2,
    cross_attention_layers=(2, 6),
    v_hidden_size=64,
    v_intermediate_size=96,
    v_attention_heads=16,
    v_num_hidden_layers=32,
    v_num_global_layers=2,
    v_intermediate_layers_indices=(3, 7, 15, 23, 30),
    image_size=28,
)
_LAYER = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "cross_attn.q_norm": "attention.q_norm",
    "cross_attn.k_norm": "attention.k_norm",
    "cross_attn_attn_gate": "gate_attn",
    "cross_attn_mlp_gate": "gate_ffwd",
}
_VISION_LAYER = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_REST = {
    "language_model.lm_head.weight": "text_model.output.weight",
    "language_model.model.norm.weight": "text_model.norm.weight",
    "multi_modal_projector.weight": "vision_model.vision_projection.weight",
    "multi_modal_projector.bias": "vision_model.vision_projection.bias",
    "vision_model.class_embedding": "class_embedding",
    "vision_model.patch_embedding.weight": "conv1._linear.weight",
    "vision_model.gated_positional_embedding.gate": "gated_positional_embedding_gate",
    "vision_model.gated_positional_embedding.embedding": "positional_embedding",
    "vision_model.gated_positional_embedding.tile_embedding.weight": "gated_positional_embedding",
    "vision_model.pre_tile_positional_embedding.gate": "pre_tile_pos_embed.gate",
    "vision_model.pre_tile_positional_embedding.embedding.weight": "pre_tile_pos_embed.embedding",
    "vision_model.post_tile_positional_embedding.gate": "post_tile_pos_embed.gate",
    "vision_model.post_tile_positional_embedding.embedding.weight": "post_tile_pos_embed.embedding",
    "vision_model.layernorm_pre.weight": "ln_pre.weight",
    "vision_model.layernorm_pre.bias": "ln_pre.bias",
    "vision_model.layernorm_post.weight": "ln_post.weight",
    "vision_model.layernorm_post.bias": "ln_post.bias",
}


def hf_tensors(config: TinyConfig) -> dict[str, np.ndarray]:
    """The tensors of the HF checkpoint, those of them made equal that Meta's form holds but once.

    Meta has one embedding for each place (row, column) of a tile; HF's tables repeat it for every grid with that place.
    """
    tensors = {
        name: factories.tensor_values(config, name, shape) for name, shape in factories.tensor_shapes(config).items()
    }
    for name, values in tensors.items():
        if name.endswith("tile_embedding.weight") or "tile_positional_embedding.embedding" in name:
            places = _places(config, values)
            table = np.zeros((len(config.aspect_ratios) + 1, config.max_num_tiles, places.shape[-1]), np.float32)
            for i, (rows, cols) in enumerate(config.aspect_ratios, 1):
                table[i, : rows * cols] = places[:rows, :cols].reshape(rows * cols, -1)
            tensors[name] = table.reshape(len(table), -1)
    return tensors


def _places(config: TinyConfig, table: np.ndarray) -> np.ndarray:
    """[tiles, tiles, elements] of a table: each place from the last grid that has it; a number where none does."""
    n = config.max_num_tiles
    places = np.full((n, n, table.shape[1] // n), 7.0, np.float32)
    for row, (rows, cols) in zip(table[1:], config.aspect_ratios, strict=True):
        places[:rows, :cols] = row.reshape(n, -1)[: rows * cols].reshape(rows, cols, -1)
    return places


def meta_tensors(config: TinyConfig, hf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Meta's names and layouts of the same numbers."""
    result = {}
    cross = list(config.cross_attention_layers)
    own = [i for i in range(config.num_hidden_layers) if i not in cross]
    head = config.hidden_size // config.num_attention_heads
    for name, stored in hf.items():
        values = stored
        if name.endswith("embed_tokens.weight"):
            result["text_model.tok_embeddings.weight"] = values[: config.vocab_size]
            result["text_model.learnable_embedding.weight"] = values[config.vocab_size :]
        elif m := re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.*?)(\.weight)?", name):
            i, part, weight = int(m[1]), m[2], m[3] or ""
            stack = f"cross_attention_layers.{cross.index(i)}" if i in cross else f"layers.{own.index(i)}"
            part = re.sub(r"(self|cross)_attn\.(.)_proj", r"attention.w\2", _LAYER.get(part, part))
            if i not in cross and part in ("attention.wq", "attention.wk"):  # (half, pair) -> (pair, half)
                values = values.reshape(-1, 2, head // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            result[f"text_model.{stack}.{part}{weight}"] = values
        elif m := re.fullmatch(r"vision_model\.(\w*transformer)\.layers\.(\d+)\.(.*?)(\.weight|\.bias)?", name):
            part = re.sub(r"self_attn\.(.)_proj", r"attn.w\1", _VISION_LAYER.get(m[3], m[3]))
            result[f"vision_model.vision_encoder.{m[1]}.resblocks.{m[2]}.{part}{m[4] or ''}"] = values
        else:
            meta = _REST[name]
            if "tile" in name and values.ndim == 2:
                values = _places(config, values)
                values = values.reshape(*values.shape[:2], -1, config.v_hidden_size)
            elif meta.startswith("conv1"):
                values = values.reshape(values.shape[0], -1)
            result[meta if "_model." in meta else "vision_model.vision_encoder." + meta] = values
    return {name: np.ascontiguousarray(values) for name, values in result.items()}


def split_for(n_parts: int, tensors: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The files of a model-parallel checkpoint: fairscale's column-parallel layers (and their biases) and embeddings
    are cut along the first axis, its row-parallel ones along the second; everything else is in every file.
    """
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(n_parts)]
    for name, values in tensors.items():
        if re.search(r"\.wo\.weight|w2\.weight|c_proj\.weight", name):
            cut = np.split(values, n_parts, axis=1)
        elif re.search(r"\.w[qkv13]\.weight|c_fc|conv1|vision_projection|tok_emb|learnable_emb|output\.weight", name):
            cut = np.split(values, n_parts, axis=0)
        else:
            cut = [values] * n_parts
        for part, piece in zip(parts, cut, strict=True):
            part[name] = np.ascontiguousarray(piece)
    return parts


def params(config: TinyConfig) -> dict[str, Any]:
    """params.json."""
    return {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 64,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers - len(config.cross_attention_layers),
        "norm_eps": 1e-5,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
        "vision_chunk_size": config.image_size,
        "vision_max_num_chunks": config.max_num_tiles,
        "vision_num_cross_attention_layers": len(config.cross_attention_layers),
        "vocab_size": config.vocab_size,
    }


def tokenizer_model(vocab_size: int) -> bytes:
    """The tiny tokenizer in tiktoken's format."""
    vocab = tiny_tokenizer.tokenizer_files(vocab_size)["tokenizer.json"]["model"]["vocab"]
    byte = {letter: b for b, letter in enumerate(tiny_tokenizer.byte_characters())}
    lines = (f"{base64.b64encode(bytes(byte[c] for c in text)).decode()} {rank}\n" for text, rank in vocab.items())
    return "".join(lines).encode()


def write_meta(out_dir: Path, config: TinyConfig = CONFIG, *, n_parts: int = 1, dtype: str = "F32") -> Path:
    """A directory with Meta's files: consolidated.00.pth and on, params.json, tokenizer.model."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(split_for(n_parts, meta_tensors(config, hf_tensors(config)))):
        write_pth(out_dir / f"consolidated.{i:02d}.pth", part, dtype)
    (out_dir / "params.json").write_text(json.dumps(params(config)), encoding="utf-8")
    (out_dir / "tokenizer.model").write_bytes(tokenizer_model(config.vocab_size))
    return out_dir


def write_hf(out_dir: Path, config: TinyConfig = CONFIG, *, dtype: str = "F32") -> Path:
    """The same model in Hugging Face's form."""
    tensors = hf_tensors(config)
    return factories.write_checkpoint(out_dir, config, dtype=dtype, edit=lambda name, _: tensors[name])


# -- torch.save by hand --------------------------------------------------------------------------------------------

_STORAGE = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    """BININT, or LONG1 where that is too short."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items: bytes) -> bytes:
    """MARK ... TUPLE."""
    return b"(" + b"".join(items) + b"t"


def name_of(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def tensor_of(key: str, shape: tuple[int, ...], dtype: str = "F32", offset: int = 0, **odd: Any) -> bytes:
    """A tensor as torch.save pickles it; `odd`: strides, storage (its class) or n_elements that are not as usual."""
    strides = odd.get("strides", [math.prod(shape[i + 1 :]) for i in range(len(shape))])
    storage = tuple_of(
        text("storage"),
        name_of("torch", odd.get("storage", _STORAGE[dtype])),
        text(key),
        text("cpu"),
        whole(odd.get("n_elements", math.prod(shape))),
    )
    args = (
        storage + b"Q",
        whole(offset),
        tuple_of(*map(whole, shape)),
        tuple_of(*map(whole, strides)),
        b"\x89",
        name_of("collections", "OrderedDict") + b")R",
    )
    return name_of("torch._utils", "_rebuild_tensor_v2") + tuple_of(*args) + b"R"


def dict_of(items: dict[str, bytes]) -> bytes:
    """A whole pickle of a dict."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def write_archive(path: Path, pickle: bytes, storages: dict[str, bytes], **options: Any) -> Path:
    """A file as torch.save writes it, of any pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickle)
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"{path.stem}/data/{key}", data)
        archive.writestr(f"{path.stem}/version", "3\n")
    return path


def write_pth(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> Path:
    """A state dict; every tensor has a storage of its own."""
    pickled = {name: tensor_of(str(i), t.shape, dtype) for i, (name, t) in enumerate(tensors.items())}
    storages = {str(i): factories.STORED[dtype](t).tobytes() for i, t in enumerate(tensors.values())}
    return write_archive(path, dict_of(pickled), storages)
