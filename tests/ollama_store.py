"""Ollama stores with Mllama models in them, written from a checkpoint as Ollama's converters would have written them.

Names, keys and what is done to values follow ollama/ollama (convert/convert_mllama.go, convert/convert_llama.go,
convert/tokenizer.go, llama/mllama.cpp) and logs of its library's files; nothing of the package's own tables is used, so
that the two can disagree. A tensor's type is that of a pair that the converter made: then all bytes can be compared.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pyvllama.config import MllamaConfig
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.conversion.tensor_map import plan
from pyvllama.gguf_file import GGML_TYPES, GGUFFile
from pyvllama.types import Pair

MEDIA = "application/vnd.ollama.image."
TEMPLATE = """{{- range $index, $_ := .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}
{{- if gt (len (slice $.Messages $index)) 1 }}<|eot_id|>
{{- else if ne .Role "assistant" }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}"""
LICENSE = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024\n"
PARAMS = '{"temperature":0.6,"top_p":0.9}'

# Applied like Go's strings.Replacer: at each position the first that matches, in this order, and nothing twice.
REPLACEMENTS = (
    ("lm_head", "output"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.up_proj", "ffn_up"),
    ("post_attention_layernorm", "ffn_norm"),
    ("language_model.", ""),
    ("gate_attn", "attn_gate"),
    ("gate_ffn", "ffn_gate"),
    ("cross_attn.", "cross_attn_"),
    ("vision_model", "v"),
    ("class_embedding", "class_embd"),
    ("patch_embedding", "patch_embd"),
    ("gated_positional_embedding.tile_embedding", "tile_position_embd"),
    ("gated_positional_embedding.embedding", "position_embd.weight"),
    ("gated_positional_embedding", "position_embd"),
    ("embedding.weight", "weight"),
    ("pre_tile_positional_embedding", "pre_tile_position_embd"),
    ("post_tile_positional_embedding", "post_tile_position_embd"),
    ("layernorm_pre", "pre_ln"),
    ("layernorm_post", "post_ln"),
    ("global_transformer.layers", "global.blk"),
    ("transformer.layers", "blk"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("multi_modal_projector", "mm.0"),
)
_REPLACER = re.compile("|".join(re.escape(old) for old, _ in REPLACEMENTS))
# G1's names in the tower (llama/mllama.cpp), where they are others: fc1 is loaded as ff_i from ffn_down
_G1 = {"attn_norm": "ln1", "ffn_norm": "ln2", "attn_output": "attn_out", "ffn_up": "ffn_down", "ffn_down": "ffn_up"}


@dataclass
class Tensor:
    """Data as bytes [rows, bytes of a row], the type's name and the shape in NumPy order."""

    raw: np.ndarray
    type: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, values: Any, type_name: str = "f32") -> "Tensor":
        """Of small float32 values."""
        values = np.asarray(values, np.float32)
        return cls(encode(values, type_name), type_name, values.shape)


@dataclass
class Model:
    """What goes into a store; tests change it before it is written."""

    text_keys: dict[str, Any]
    vision_keys: dict[str, Any]
    text: dict[str, Tensor]
    vision: dict[str, Tensor]
    one_file: bool
    layers: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.vision | self.text

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def name_of(hf: str) -> str:
    """G3's name of a checkpoint's tensor."""
    return _REPLACER.sub(lambda found: dict(REPLACEMENTS)[found[0]], hf)


def g1_name(name: str) -> str:
    """G1's name of the tensor that G3 calls `name`."""
    if not re.match(r"v\.(global\.)?blk\.", name) or name.endswith("_gate"):
        return name
    kind = name.split(".")[-2]
    return name.replace(f".{kind}.", f".{_G1.get(kind, kind)}.")


def encode(values: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 [rows, bytes of a row]."""
    rows = values.reshape(-1, values.shape[-1])
    if type_name in ("f32", "f16"):
        return np.ascontiguousarray(rows, "<f4" if type_name == "f32" else "<f2").view(np.uint8)
    from pyvllama._runtime import native

    return native.quantize(np.ascontiguousarray(rows), type_name).view(np.uint8).reshape(len(rows), -1)


def interleave(raw: np.ndarray, n_head: int) -> np.ndarray:
    """Rows as Ollama's `repack` moves them: [head, 2, half] to [head, half, 2]."""
    return raw.reshape(n_head, 2, len(raw) // n_head // 2, -1).swapaxes(1, 2).reshape(raw.shape)


def build(
    checkpoint: Path, pair: Pair, generation: str, *, cross_qk: str = "interleaved", norm_type: str = "f32"
) -> Model:
    """A model as Ollama's converter of that generation would have stored it.

    Args:
        checkpoint: in Hugging Face's form.
        pair: converted from it; each tensor here gets its type there.
        generation: G1, G2 or G3.
        cross_qk: "interleaved" or "plain", the rows of q and k in the cross-attention layers.
        norm_type: of vectors.
    """
    source = Checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    parsed = MllamaConfig.from_hf_json(config)
    files = [GGUFFile(pair.text), GGUFFile(pair.mmproj)]
    types = {
        t.hf: next(f for f in files if t.name in f.tensors).tensors[t.name].type for t in reversed(plan(parsed, 0))
    }
    out: dict[str, Tensor] = {}
    for hf, tensor in source.tensors.items():
        name, shape = name_of(hf), tuple(tensor.shape)
        n_rows = shape[0] if len(shape) > 1 else 1
        values = to_f32(tensor.rows(np.arange(n_rows))).reshape(shape)
        kind = norm_type if len(shape) == 1 else "f32" if "tile_position_embd" in name else types[hf]
        raw = encode(values, kind)
        plain = cross_qk == "plain" and "cross_attn" in name
        if name.startswith("v."):
            if generation == "G3" and name.endswith(("attn_q.weight", "attn_k.weight")):
                raw = interleave(raw, vision["attention_heads"])
        elif name.endswith(("attn_q.weight", "attn_q_proj.weight")) and not plain:
            raw = interleave(raw, text["num_attention_heads"])
        elif name.endswith(("attn_k.weight", "attn_k_proj.weight")) and not plain:
            raw = interleave(raw, text["num_key_value_heads"])
        out[name] = Tensor(raw, kind, shape)
        if name.startswith("v.") and name.endswith("gate"):
            if generation != "G2" or not name.endswith(("attn_gate", "ffn_gate")):
                out[name] = Tensor.of(np.tanh(values, dtype=np.float32))
            if name == "v.position_embd.gate":
                out["v.tile_position_embd.gate"] = out[name]
                out[name] = Tensor.of(np.float32(1) - np.tanh(values, dtype=np.float32))
    if rope := text.get("rope_scaling"):
        out["rope_freqs.weight"] = Tensor.of(_rope_factors(text, rope))
    in_vision = {name for name in out if name.startswith(("v.", "mm."))}
    if generation == "G1":
        out = {g1_name(name): tensor for name, tensor in out.items()}
        in_vision = {g1_name(name) for name in in_vision}
    file_type = files[0].metadata["general.file_type"]
    keys = _text_keys(text, file_type) | _tokenizer_keys(checkpoint, generation)
    if generation == "G1":
        keys |= {"general.type": "model", "general.name": "Model", "general.size_label": "10B"}
    return Model(
        text_keys=keys,
        vision_keys={"general.architecture": "mllama", "general.file_type": np.uint32(1)} | _vision_keys(vision),
        text={name: t for name, t in out.items() if name not in in_vision},
        vision={name: t for name, t in out.items() if name in in_vision},
        one_file=generation != "G1",
        layers=[("template", TEMPLATE.encode()), ("license", LICENSE.encode()), ("params", PARAMS.encode())],
    )


def _rope_factors(text: dict[str, Any], rope: dict[str, Any]) -> list[float]:
    """convert_llama.go's: wave lengths in float64, the rest in float32."""
    dim, original = text["hidden_size"] // text["num_attention_heads"], rope["original_max_position_embeddings"]
    low, high, factor = (np.float32(rope[k]) for k in ("low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * math.pow(text["rope_theta"], i / dim)
        if wave < np.float32(original) / high:
            factors.append(1.0)
        elif wave > np.float32(original) / low:
            factors.append(float(factor))
        else:
            smooth = (np.float32(original) / np.float32(wave) - low) / (high - low)
            factors.append(float(1 / ((1 - smooth) / factor + smooth)))
    return factors


def _text_keys(text: dict[str, Any], file_type: int) -> dict[str, Any]:
    u32 = np.uint32
    return {
        "general.architecture": "mllama",
        "general.file_type": u32(file_type),
        "general.quantization_version": u32(2),
        "mllama.vocab_size": u32(text["vocab_size"]),
        "mllama.block_count": u32(text["num_hidden_layers"]),
        "mllama.context_length": u32(text["max_position_embeddings"]),
        "mllama.embedding_length": u32(text["hidden_size"]),
        "mllama.feed_forward_length": u32(text["intermediate_size"]),
        "mllama.attention.head_count": u32(text["num_attention_heads"]),
        "mllama.attention.head_count_kv": u32(text["num_key_value_heads"]),
        "mllama.attention.layer_norm_rms_epsilon": np.float32(text["rms_norm_eps"]),
        "mllama.attention.cross_attention_layers": np.array(text["cross_attention_layers"], np.int32),
        "mllama.rope.dimension_count": u32(text["hidden_size"] // text["num_attention_heads"]),
        "mllama.rope.freq_base": np.float32(text["rope_theta"]),
    }


def _vision_keys(vision: dict[str, Any]) -> dict[str, Any]:
    u32 = np.uint32
    return {
        "mllama.vision.block_count": u32(vision["num_hidden_layers"]),
        "mllama.vision.global.block_count": u32(vision["num_global_layers"]),
        "mllama.vision.intermediate_layers_indices": np.array(vision["intermediate_layers_indices"], np.int32),
        "mllama.vision.embedding_length": u32(vision["hidden_size"]),
        "mllama.vision.feed_forward_length": u32(vision["intermediate_size"]),
        "mllama.vision.attention.head_count": u32(vision["attention_heads"]),
        "mllama.vision.attention.layer_norm_epsilon": np.float32(vision["norm_eps"]),
        "mllama.vision.image_size": u32(vision["image_size"]),
        "mllama.vision.patch_size": u32(vision["patch_size"]),
        "mllama.vision.max_num_tiles": u32(vision["max_num_tiles"]),
        "mllama.vision.num_channels": u32(3),
    }


def _tokenizer_keys(checkpoint: Path, generation: str) -> dict[str, Any]:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    named = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    stops = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    added = {t["id"]: t for t in tokenizer["added_tokens"]}
    ids = {i: text for text, i in tokenizer["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    control = {i for i, t in added.items() if t["special"]}
    by_text = {t["content"]: i for i, t in added.items()}
    merges = tokenizer["model"]["merges"]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smaug-bpe" if generation == "G1" else "llama-bpe",
        "tokenizer.ggml.tokens": [ids[i] for i in sorted(ids)],
        "tokenizer.ggml.token_type": np.array(
            [3 if i in control else 4 if i in added else 1 for i in sorted(ids)], np.int32
        ),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
    }
    for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = named[f"{kind}_token"]
        keys[f"tokenizer.ggml.{key}_token_id"] = np.uint32(
            by_text[token["content"] if isinstance(token, dict) else token]
        )
        if generation != "G1":  # tokenizer_config.json has no add_bos_token, so Go's zero value is written
            keys[f"tokenizer.ggml.add_{key}_token"] = False
    if generation != "G1":
        keys["tokenizer.ggml.scores"] = np.array(sorted(ids), np.float32)
    if generation == "G3":
        keys["tokenizer.ggml.eos_token_ids"] = np.array(stops, np.int32)
        keys["general.parameter_count"] = np.uint64(12_700_000)
    return keys


def write_gguf(path: Path, keys: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A GGUF by PyPI's writer, tensors in the order of their names as Ollama sorts them."""
    writer = gguf.GGUFWriter(path, keys["general.architecture"])
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        if isinstance(value, np.ndarray | list):
            inner = _KINDS[value.dtype.type] if isinstance(value, np.ndarray) else gguf.GGUFValueType.STRING
            items = value.tolist() if isinstance(value, np.ndarray) else value
            writer.add_key_value(key, items, gguf.GGUFValueType.ARRAY, sub_type=inner)
        else:
            kind = _KINDS[type(value)]
            writer.add_key_value(key, value if isinstance(value, str | bool) else value.item(), kind)
    for name, t in sorted(tensors.items()):
        number = gguf.GGMLQuantizationType(GGML_TYPES[t.type].number)
        writer.add_tensor_info(name, t.shape, np.dtype(np.float32), t.raw.nbytes, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for _, t in sorted(tensors.items()):
        out.write(np.ascontiguousarray(t.raw).tobytes())
        writer.write_padding(out, t.raw.nbytes)
    writer.close()
    return path


_KINDS = {
    str: gguf.GGUFValueType.STRING,
    bool: gguf.GGUFValueType.BOOL,
    np.uint32: gguf.GGUFValueType.UINT32,
    np.uint64: gguf.GGUFValueType.UINT64,
    np.int32: gguf.GGUFValueType.INT32,
    np.float32: gguf.GGUFValueType.FLOAT32,
}


class Store:
    """A directory like ~/.ollama/models."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, data: bytes) -> str:
        """Store bytes; returns their digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "-")

    def manifest_path(self, name: str = "llama3.2-vision:latest") -> Path:
        """Of a complete name, or one of the library."""
        path, tag = name.rsplit(":", 1)
        parts = ["registry.ollama.ai", "library"][: 3 - len(path.split("/"))] + path.split("/")
        return self.path.joinpath("manifests", *parts, tag)

    def add(self, name: str, layers: Sequence[tuple[str, bytes]]) -> Path:
        """Write a manifest with these layers (kind, contents). Returns its path."""
        entries = [{"mediaType": MEDIA + kind, "digest": self.blob(data), "size": len(data)} for kind, data in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": self.blob(b'{"model_family":"mllama"}'),
                "size": 25,
            },
            "layers": entries,
        }
        path = self.manifest_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        return path

    def add_model(self, model: Model, name: str = "llama3.2-vision:latest") -> Path:
        """Write a model's files and its manifest. Returns the manifest's path."""
        scratch = self.path / "scratch.gguf"
        if model.one_file:
            tensors, keys = model.tensors, model.vision_keys | model.text_keys
            layers = [("model", write_gguf(scratch, keys, tensors).read_bytes())]
        else:
            layers = [("model", write_gguf(scratch, model.text_keys, model.text).read_bytes())]
            layers += [("projector", write_gguf(scratch, model.vision_keys, model.vision).read_bytes())]
        scratch.unlink()
        return self.add(name, [*layers, *model.layers])

    def layer(self, kind: str, name: str = "llama3.2-vision:latest") -> Path:
        """The blob of a model's layer."""
        layers = json.loads(self.manifest_path(name).read_text())["layers"]
        return self.blob_path(next(x["digest"] for x in layers if x["mediaType"] == MEDIA + kind))

    def edit_manifest(self, change: Callable[[dict[str, Any]], None], name: str = "llama3.2-vision:latest") -> None:
        """Change the JSON of a manifest."""
        path = self.manifest_path(name)
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
