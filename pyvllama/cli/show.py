"""`pyvllama show`: what is in a pair, without loading it."""

import json
from collections import Counter
from typing import Any

import click

from pyvllama.cli import ui
from pyvllama.cli.fit import examine_fit, print_fit
from pyvllama.cli.options import MEMORY_OPTIONS, memory_options, refuse_given
from pyvllama.errors import FormatError
from pyvllama.gguf_file import GGUFFile, pairing_hash
from pyvllama.inventory import inventory
from pyvllama.locate import as_path
from pyvllama.pair_checks import check_text
from pyvllama.resolve import resolve
from pyvllama.types import Pair

__all__ = ["show"]


def _find(model: str | None, mmproj: str | None) -> Pair:
    with ui.bytes_progress() as progress:
        return _kept(model, mmproj) or resolve(model, mmproj, progress=progress, note=ui.note)


def describe(pair: Pair) -> dict[str, Any]:
    """What `show` prints, as a JSON object. Sizes in bytes."""
    text, vision = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    check_text(text)
    t, v = text.metadata, vision.metadata
    if v.get("clip.projector_type") != "mllama":
        raise FormatError(f"{pair.mmproj}: this is no mmproj file of Llama 3.2 Vision (clip.projector_type = mllama)")
    return {
        "name": t.get("general.name"),
        "text": {
            "file": str(pair.text),
            **_contents(text),
            "layers": t.get("llama.block_count"),
            "width": t.get("llama.embedding_length"),
            "heads": [t.get("llama.attention.head_count"), t.get("llama.attention.head_count_kv")],
            "context_length": t.get("llama.context_length"),
            "tokens": text.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in text.tensors else None,
        },
        "mmproj": {
            "file": str(pair.mmproj),
            **_contents(vision),
            "vision_layers": [v.get("clip.vision.block_count"), v.get("clip.mllama.global_block_count")],
            "cross_attention_layers": v.get("clip.mllama.cross_attention_layers"),
            "tile_size": v.get("clip.vision.image_size"),
            "max_num_tiles": v.get("clip.mllama.max_num_tiles"),
        },
        "made_together": pairing_hash(text) == v.get("clip.mllama.pairing_hash"),
    }


def _kept(model: str | None, mmproj: str | None) -> Pair | None:
    """What `pyvllama list` shows under a name: shown without asking the Hub for something newer."""
    if model is None or mmproj is not None or as_path(model).exists():
        return None
    return next((item.pair for item in inventory() if item.name == model), None)


def _contents(file: GGUFFile) -> dict[str, Any]:
    types: Counter[str] = Counter()
    n_parameters = 0
    for tensor in file.tensors.values():
        types[tensor.type] += tensor.n_bytes
        size = 1
        for n in tensor.shape:
            size *= n
        n_parameters += size
    return {
        "parameters": n_parameters,
        "bytes": sum(types.values()),
        "bytes_by_type": dict(types.most_common()),
    }


@click.command()
@click.argument("model", required=False)
@click.option("--mmproj", type=click.Path(), help="The mmproj file, if it is not beside the text file.")
@click.option("--fit", is_flag=True, help="Also how much memory a chat needs at most, and whether this machine has it.")
@memory_options()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_context
def show(
    context: click.Context,
    model: str | None,
    mmproj: str | None,
    fit: bool,
    ctx_size: int,
    kv_type: str,
    cross_kv_type: str,
    repack: bool,
    as_json: bool,
) -> None:
    """Show what is in a model, without loading it. MODEL is anything that `run` takes.

    --fit predicts the largest resident set of a chat with one large picture, on the CPU, and says which options make it
    fit if it does not.

    \b
    pyvllama show models
    pyvllama show models --fit --ctx-size 16384
    pyvllama show Llama-3.2-11B-Vision-Instruct-Q4_K_M          a name that `pyvllama list` shows
    pyvllama show models/Llama-3.2-11B-Vision-Instruct-Q4_K_M.gguf --json
    """  # noqa: D301  click wants the character itself
    if not fit:
        refuse_given(context, MEMORY_OPTIONS, "--fit")
    pair = _find(model, mmproj)
    d = describe(pair)
    if fit:
        d["fit"] = examine_fit(pair, ctx_size, kv_type, cross_kv_type, repack=repack)
    if as_json:
        click.echo(json.dumps(d, indent=2))
        return
    text, vision = d["text"], d["mmproj"]
    lines = [
        ("model", d["name"]),
        ("text", text["file"]),
        ("", _size(text)),
        ("", f"{text['layers']} self-attention layers, width {text['width']}, {text['heads'][0]} heads, "
             f"{text['heads'][1]} of keys and values, {text['tokens']} tokens, trained for {text['context_length']}"),
        ("mmproj", vision["file"]),
        ("", _size(vision)),
        ("", f"{vision['vision_layers'][0]} + {vision['vision_layers'][1]} vision layers, up to "
             f"{vision['max_num_tiles']} tiles of {vision['tile_size']} x {vision['tile_size']} pixels"),
        ("", f"cross-attention layers {', '.join(map(str, vision['cross_attention_layers'] or []))}"),
        ("pair", "made together" if d["made_together"] else "of different text models (grafted)"),
    ]  # fmt: skip
    for label, value in lines:
        click.echo(f"{label:8}{value}")
    if fit:
        click.echo("")
        print_fit(d["fit"])
        if d["fit"]["available"] is not None:
            click.echo("It fits." if d["fit"]["fits"] else f"It does not fit: {d['fit']['problem']}")


def _size(part: dict[str, Any]) -> str:
    types = ", ".join(f"{t} {ui.format_bytes(n)}" for t, n in part["bytes_by_type"].items())
    return f"{part['parameters'] / 1e6:,.1f} M parameters, {ui.format_bytes(part['bytes'])} ({types})"
