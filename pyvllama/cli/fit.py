"""Whether a model fits this machine, for `doctor` and `show --fit`."""

from typing import Any

import click

from pyvllama.cli import ui
from pyvllama.memory_need import MemorySettings, advice, available_memory, memory_need, read_sizes
from pyvllama.types import Pair

__all__ = ["examine_fit", "print_fit"]


def examine_fit(pair: Pair, ctx_size: int, kv_type: str, cross_kv_type: str, *, repack: bool) -> dict[str, Any]:
    """Whether a chat with one of its largest pictures fits, as a JSON object; sizes in bytes."""
    sizes = read_sizes(pair, repack=repack)
    need, available = memory_need(sizes, MemorySettings(ctx_size, kv_type, cross_kv_type)), available_memory()
    fits = available is None or need.fits(available)
    options = [] if fits or available is None else advice(sizes, need, available)
    problem = None
    if not fits and available is not None:
        short = f"{pair.text.name} needs {ui.format_bytes(need.total)}, {ui.format_bytes(available)} are available: "
        problem = short + (
            f"try {' '.join(options)}"
            if options
            else "it fits with no setting; take a smaller type (see `pyvllama quantize`) or close other programs"
        )
    return {
        "text": str(pair.text),
        "mmproj": str(pair.mmproj),
        "need": dict(need.parts),
        "need_total": need.total,
        "peak": need.peak,
        "phases": {name: sum(parts.values()) for name, parts in need.phases.items()},
        "each_picture": need.picture,
        "available": available,
        "fits": fits,
        "options": options,
        "problem": problem,
    }


def print_fit(fit: dict[str, Any]) -> None:
    """For people."""
    click.echo(f"{fit['text']} needs {ui.format_bytes(fit['need_total'])} on the CPU, with one large picture:")
    for name, n_bytes in fit["need"].items():
        click.echo(f"  {name:32}{ui.format_bytes(n_bytes):>10}")
    others = (f"{name} {ui.format_bytes(n)}" for name, n in fit["phases"].items() if name != fit["peak"])
    click.echo(f"That is while {fit['peak']}; {', '.join(others)}.")
    if fit["available"] is not None:
        click.echo(f"  {'available':32}{ui.format_bytes(fit['available']):>10}")
