"""Meta's own checkpoints: consolidated.*.pth, params.json and tokenizer.model.

The table says what each tensor is called by Hugging Face, and how the files of a model that was cut for several GPUs
(90B: eight) hold it. A few tensors are laid out otherwise as well; see `_arrange`. Names and layouts are those of
llama_models/llama3/multimodal/model.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvllama.config import MllamaConfig, TextConfig, aspect_ratios
from pyvllama.conversion import transforms
from pyvllama.conversion.checkpoint import Checkpoint, Tensor, json_object, listing, read_text
from pyvllama.conversion.composed import Reordered, join, reshaped, tile_table
from pyvllama.conversion.meta_config import hf_files
from pyvllama.conversion.tiktoken import read_ranks, special_tokens, tokenizer_json
from pyvllama.conversion.torch_file import read_torch_file
from pyvllama.conversion.vocab import LLAMA3_REGEX
from pyvllama.errors import CheckpointError, ModelNotFound

__all__ = ["TABLE", "MetaCheckpoint", "is_meta_checkpoint"]

_PARAMS, _TOKENIZER, _SINGLE = "params.json", "tokenizer.model", "consolidated.pth"
_NUMBERED = re.compile(r"consolidated\.(\d{2})\.pth")

# How the files of a model hold a tensor: each file all of it, or parts along axis 0 or 1.
_ALL, _ROWS, _COLUMNS = None, 0, 1

_SELF, _CROSS = "text_model.layers.{i}.", "text_model.cross_attention_layers.{i}."
_VISION = "vision_model.vision_encoder."
_EMBED, _EXTRA = "text_model.tok_embeddings.weight", "text_model.learnable_embedding.weight"
_LM = "language_model.model."
_GPE = "vision_model.gated_positional_embedding."
_PRE, _POST = "vision_model.pre_tile_positional_embedding.", "vision_model.post_tile_positional_embedding."
_TILE_TABLES = (_GPE + "tile_embedding.weight", _PRE + "embedding.weight", _POST + "embedding.weight")

# fmt: off
_TEXT_LAYER = (
    ("attention_norm.weight",  "input_layernorm.weight",          _ALL),
    ("ffn_norm.weight",        "post_attention_layernorm.weight", _ALL),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight",            _ROWS),
    ("feed_forward.w2.weight", "mlp.down_proj.weight",            _COLUMNS),
    ("feed_forward.w3.weight", "mlp.up_proj.weight",              _ROWS),
)
_ATTENTION = (("q", _ROWS), ("k", _ROWS), ("v", _ROWS), ("o", _COLUMNS))
_VISION_LAYER = (
    ("ln_1.weight",       "input_layernorm.weight",          _ALL),
    ("ln_1.bias",         "input_layernorm.bias",            _ALL),
    ("ln_2.weight",       "post_attention_layernorm.weight", _ALL),
    ("ln_2.bias",         "post_attention_layernorm.bias",   _ALL),
    ("mlp.c_fc.weight",   "mlp.fc1.weight",                  _ROWS),
    ("mlp.c_fc.bias",     "mlp.fc1.bias",                    _ROWS),
    ("mlp.c_proj.weight", "mlp.fc2.weight",                  _COLUMNS),
    ("mlp.c_proj.bias",   "mlp.fc2.bias",                    _ALL),
)
_ROWS_OF_TABLE: tuple[tuple[str, str, int | None], ...] = (
    (_EMBED,                                       _LM + "embed_tokens.weight",           _ROWS),
    (_EXTRA,                                       "learnable_embedding",                 _ROWS),
    ("text_model.norm.weight",                     _LM + "norm.weight",                   _ALL),
    ("text_model.output.weight",                   "language_model.lm_head.weight",       _ROWS),
    *((_SELF + f"attention.w{x}.weight",           _LM + f"layers.{{i}}.self_attn.{x}_proj.weight", axis)
      for x, axis in _ATTENTION),
    *((_SELF + meta,                               _LM + "layers.{i}." + hf, axis) for meta, hf, axis in _TEXT_LAYER),
    *((_CROSS + f"attention.w{x}.weight",          _LM + f"layers.{{i}}.cross_attn.{x}_proj.weight", axis)
      for x, axis in _ATTENTION),
    *((_CROSS + f"attention.{x}_norm.weight",      _LM + f"layers.{{i}}.cross_attn.{x}_norm.weight", _ALL)
      for x in "qk"),
    *((_CROSS + meta,                              _LM + "layers.{i}." + hf, axis) for meta, hf, axis in _TEXT_LAYER),
    (_CROSS + "gate_attn",                         _LM + "layers.{i}.cross_attn_attn_gate", _ALL),
    (_CROSS + "gate_ffwd",                         _LM + "layers.{i}.cross_attn_mlp_gate", _ALL),
    (_VISION + "class_embedding",                  "vision_model.class_embedding",        _ALL),
    (_VISION + "conv1._linear.weight",             "vision_model.patch_embedding.weight", _ROWS),
    (_VISION + "positional_embedding",             _GPE + "embedding",                    _ALL),
    (_VISION + "gated_positional_embedding",       _GPE + "tile_embedding.weight",        _ALL),
    (_VISION + "gated_positional_embedding_gate",  _GPE + "gate",                         _ALL),
    (_VISION + "pre_tile_pos_embed.embedding",     _PRE + "embedding.weight",             _ALL),
    (_VISION + "pre_tile_pos_embed.gate",          _PRE + "gate",                         _ALL),
    (_VISION + "post_tile_pos_embed.embedding",    _POST + "embedding.weight",            _ALL),
    (_VISION + "post_tile_pos_embed.gate",         _POST + "gate",                        _ALL),
    *((_VISION + f"ln_{side}.{kind}",              f"vision_model.layernorm_{side}.{kind}", _ALL)
      for side in ("pre", "post") for kind in ("weight", "bias")),
    *((_VISION + f"{stack}.resblocks.{{i}}.attn.w{x}.weight",
       f"vision_model.{stack}.layers.{{i}}.self_attn.{x}_proj.weight", axis)
      for stack in ("transformer", "global_transformer") for x, axis in _ATTENTION),
    *((_VISION + f"{stack}.resblocks.{{i}}.{meta}", f"vision_model.{stack}.layers.{{i}}.{hf}", axis)
      for stack in ("transformer", "global_transformer") for meta, hf, axis in _VISION_LAYER),
    *((_VISION + f"global_transformer.resblocks.{{i}}.{gate}",
       f"vision_model.global_transformer.layers.{{i}}.{gate}", _ALL) for gate in ("gate_attn", "gate_ffn")),
    ("vision_model.vision_projection.weight",      "multi_modal_projector.weight",        _ROWS),
    ("vision_model.vision_projection.bias",        "multi_modal_projector.bias",          _ROWS),
)
# fmt: on
TABLE = {meta: (hf, axis) for meta, hf, axis in _ROWS_OF_TABLE}
"""Meta's name -> (Hugging Face's, axis of the parts); {i} is a layer, in each one's own numbering."""

_IGNORED = ("text_model.rope.freqs",)
_NUMBER = re.compile(r"\.(\d+)\.")


def is_meta_checkpoint(path: Path) -> bool:
    """Whether a directory holds Meta's files, and not Hugging Face's."""
    return not (path / "config.json").is_file() and ((path / _PARAMS).is_file() or any(path.glob("consolidated*.pth")))


class MetaCheckpoint(Checkpoint):
    """A directory with Meta's files, seen as the Hugging Face checkpoint of the same model.

    Raises:
        ModelNotFound: no such directory.
        CheckpointError: files are missing or damaged, or the tensors are not those of params.json.
        ConfigError: params.json lacks keys.
    """

    config_file = _PARAMS

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes, self.base, self.borrowed = [], None, {}
        if not self.path.is_dir():
            raise ModelNotFound(f"{self.path} is no directory; expected one that holds Meta's checkpoint")
        if missing := [name for name in (_PARAMS, _TOKENIZER) if not (self.path / name).is_file()]:
            raise CheckpointError(
                f"{self.path} lacks {' and '.join(missing)}; copy it from where the checkpoint came from"
            )
        params = json_object(self.path / _PARAMS, read_text(self.path / _PARAMS))
        if isinstance(params.get("model"), dict):
            params = params["model"]
        tensors = self._merged()
        sizes = _sizes(self.path, tensors)
        vocab_size = tensors[_EMBED].shape[0]
        ranks = read_ranks(self.path / _TOKENIZER)
        specials = special_tokens(len(ranks), vocab_size, str(self.path / _TOKENIZER))
        self._files = hf_files({"vocab_size": vocab_size} | _known(params), sizes, specials)
        self._files["tokenizer.json"] = tokenizer_json(ranks, specials, LLAMA3_REGEX)
        config = MllamaConfig.from_hf_json(self._files["config.json"])
        self.tensors = _arrange(self.path, tensors, config)

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """The JSON file that a Hugging Face checkpoint of the same model would hold."""
        return self._files.get(name)

    def optional_text(self, name: str) -> str | None:
        """The same as text."""
        return json.dumps(self._files[name]) if name in self._files else None

    def _merged(self) -> dict[str, Tensor]:
        """Meta's name -> tensor, put together from all files."""
        files = [read_torch_file(path) for path in self._parts()]
        names = files[0].keys()
        if odd := [name for tensors in files[1:] for name in tensors.keys() ^ names]:
            raise CheckpointError(f"{self.path}: not every consolidated.*.pth holds\n{listing(sorted(set(odd)))}")
        merged: dict[str, Tensor] = {}
        for name in names:
            if name not in _IGNORED:
                axis = TABLE.get(_NUMBER.sub(".{i}.", name), (name, _ALL))[1]
                merged[name] = files[0][name] if axis is None else join([tensors[name] for tensors in files], axis)
        return merged

    def _parts(self) -> list[Path]:
        if (self.path / _SINGLE).is_file():
            return [self.path / _SINGLE]
        numbers = sorted(int(m[1]) for p in self.path.iterdir() if (m := _NUMBERED.fullmatch(p.name)))
        if not numbers or numbers != list(range(len(numbers))):
            there = f"only parts {numbers}" if numbers else "none of them"
            raise CheckpointError(f"{self.path} lacks consolidated.00.pth and what follows it: {there} (interrupted?)")
        return [self.path / f"consolidated.{i:02d}.pth" for i in numbers]


def _known(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without the -1 by which some files say that a size is the tokenizer's."""
    return {key: value for key, value in params.items() if not (key == "vocab_size" and value == -1)}


def _sizes(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that only the tensors tell."""
    shapes = {
        name: tensors[name].shape if name in tensors else None
        for name in (
            _EMBED,
            _EXTRA,
            _SELF.format(i=0) + "feed_forward.w1.weight",
            _VISION + "class_embedding",
            _VISION + "conv1._linear.weight",
            _VISION + "gated_positional_embedding",
            _VISION + "transformer.resblocks.0.mlp.c_fc.weight",
        )
    }
    if lost := [name for name, shape in shapes.items() if not shape or 0 in shape]:
        raise CheckpointError(f"{path} lacks tensors of Llama 3.2 Vision (is it a text model?):\n{listing(lost)}")
    _, _, w1, width, conv, tiles, c_fc = (shape or () for shape in shapes.values())
    return {
        "dim_ffn": w1[0],
        "vision_width": width[0],
        "patch_size": math.isqrt(conv[-1] // 3),
        "max_num_tiles": tiles[0],
        "vision_ffn": c_fc[0],
        "vision_layers": _n_layers(tensors, _VISION + "transformer.resblocks."),
        "vision_global_layers": _n_layers(tensors, _VISION + "global_transformer.resblocks."),
    }


def _n_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def _arrange(path: Path, tensors: Mapping[str, Tensor], config: MllamaConfig) -> dict[str, Tensor]:
    """Hugging Face's names and layouts; what the table does not know keeps its name, and is reported by `check`."""
    text = config.text
    arranged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        number = _NUMBER.search(name)
        hf = TABLE.get(_NUMBER.sub(".{i}.", name), (name, _ALL))[0]
        layer = int(number[1]) if number else 0
        if name.startswith("text_model.") and number:
            is_cross = name.startswith("text_model.cross_attention_layers.")
            order = text.cross_attention_layers if is_cross else text.self_attention_layers
            if layer >= len(order):  # more layers than params.json says
                arranged[name] = tensor
                continue
            layer = order[layer]
        arranged[hf.format(i=layer) if number else hf] = _rearranged(tensor, hf, config)
    extra, embed = arranged.pop("learnable_embedding"), arranged[_LM + "embed_tokens.weight"]
    arranged[_LM + "embed_tokens.weight"] = join([embed, extra], 0)
    _check_positions(path, arranged, config)
    return arranged


def _rearranged(tensor: Tensor, hf: str, config: MllamaConfig) -> Tensor:
    """A tensor whose layout differs; all others as they are."""
    text: TextConfig = config.text
    if hf.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")) and hf.startswith(_LM):
        n_head = text.num_attention_heads if "q_proj" in hf else text.num_key_value_heads
        if tensor.shape[0] % (2 * n_head):
            return tensor  # `check` will tell
        # Meta rotates neighbouring elements (as llama.cpp does), Hugging Face the two halves of a head.
        n_rows = tensor.shape[0]
        order = transforms.invert(transforms.permute_rope(n_rows, n_head), n_rows)
        return Reordered(tensor.name, tensor.path, tensor.type, tensor.shape, tensor, order)
    if hf == "vision_model.patch_embedding.weight":  # a linear layer over unfolded patches
        patch = config.vision.patch_size
        return reshaped(tensor, (tensor.shape[0], 3, patch, patch)) if tensor.shape[-1] == 3 * patch**2 else tensor
    if hf in _TILE_TABLES:
        return tile_table(tensor, aspect_ratios(config.vision.max_num_tiles))
    if hf.endswith(("gate", "gate_attn", "gate_ffn")) and tensor.shape == ():
        return reshaped(tensor, (1,))
    return tensor


def _check_positions(path: Path, tensors: Mapping[str, Tensor], config: MllamaConfig) -> None:
    """Meta's code stretches a position embedding of another size when it loads it; this is not done here."""
    embedding = tensors.get(_GPE + "embedding")
    if embedding is not None and embedding.shape and embedding.shape[0] != config.vision.n_positions:
        raise CheckpointError(
            f"{path}: {embedding.name} has {embedding.shape[0]} positions, but vision_chunk_size = "
            f"{config.vision.image_size} asks for {config.vision.n_positions}; convert the Hugging Face release "
            "of this model, where it has been resized"
        )
