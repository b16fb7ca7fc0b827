"""`pyvllama doctor`: is all well, and will this model fit?"""

import json
from dataclasses import asdict
from typing import Any

import click

from pyvllama import doctor as examination
from pyvllama.cli import ui
from pyvllama.context import KV_TYPES
from pyvllama.loading import DEFAULT_N_CTX
from pyvllama.memory_need import advice, available_memory, memory_need, read_sizes
from pyvllama.resolve import resolve

__all__ = ["doctor"]

EXIT_PROBLEM = 1


@click.command()
@click.argument("model", required=False)
@click.option("--mmproj", metavar="FILE|REPO", help="The mmproj file, if it is not beside the text file.")
@click.option("-c", "--ctx-size", type=click.IntRange(min=1), default=DEFAULT_N_CTX, show_default=True,
              help="Positions of the context to ask for.")  # fmt: skip
@click.option("--kv-type", type=click.Choice(list(KV_TYPES)), default="f16", show_default=True,
              help="Type of the context's keys and values to ask for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; sizes in bytes.")
@click.pass_context
def doctor(
    context: click.Context, model: str | None, mmproj: str | None, ctx_size: int, kv_type: str, as_json: bool
) -> None:
    """Look at the installation and the machine; with MODEL, say whether it fits in memory and with which settings.

    Exit code 0: all is well; 1: something is wrong, and it says what. MODEL is anything that `run` takes; only the
    headers of its files are read, and the need for memory is an estimate.

    \b
    pyvllama doctor
    pyvllama doctor models --ctx-size 32768
    """  # noqa: D301  click wants the character itself
    findings = examination.examine()
    problems = [finding.problem for finding in findings if finding.problem]
    fit = None if model is None else _fit(model, mmproj, ctx_size, kv_type)
    if fit is not None and not fit["fits"]:
        problems.append(fit["problem"])
    if as_json:
        click.echo(json.dumps({"findings": list(map(asdict, findings)), "model": fit, "problems": problems}, indent=2))
    else:
        _print(findings, fit, problems)
    context.exit(EXIT_PROBLEM if problems else 0)


def _fit(model: str, mmproj: str | None, n_ctx: int, kv_type: str) -> dict[str, Any]:
    """Whether a model fits, as a JSON object."""
    with ui.bytes_progress() as progress:
        pair = resolve(model, mmproj, progress=progress, note=ui.note)
    sizes = read_sizes(pair)
    need, available = memory_need(sizes, n_ctx=n_ctx, kv_type=kv_type), available_memory()
    fits = available is None or need.total <= available
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
        "available": available,
        "fits": fits,
        "options": options,
        "problem": problem,
    }


def _print(findings: list[examination.Finding], fit: dict[str, Any] | None, problems: list[str]) -> None:
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        click.echo(f"{finding.name:{width}}{finding.value}")
        if finding.hint:
            click.echo(f"{'':{width}}Hint: {finding.hint}")
    if fit is not None:
        click.echo(f"\n{fit['text']} needs about {ui.format_bytes(fit['need_total'])}:")
        for name, n_bytes in fit["need"].items():
            click.echo(f"  {name:32}{ui.format_bytes(n_bytes):>10}")
        if fit["available"] is not None:
            click.echo(f"  {'available':32}{ui.format_bytes(fit['available']):>10}")
    click.echo("")
    for problem in problems:
        click.echo(f"Problem: {problem}")
    if not problems:
        click.echo("All is well." if fit is None else "All is well; the model fits.")
