"""`pyvllama doctor`: is all well, and will this model fit?"""

import json
from dataclasses import asdict
from typing import Any

import click

from pyvllama import doctor as examination
from pyvllama.cli import ui
from pyvllama.cli.fit import examine_fit, print_fit
from pyvllama.cli.options import MEMORY_OPTIONS, memory_options, refuse_given
from pyvllama.resolve import resolve

__all__ = ["doctor"]

EXIT_PROBLEM = 1


@click.command()
@click.argument("model", required=False)
@click.option("--mmproj", metavar="FILE|REPO", help="The mmproj file, if it is not beside the text file.")
@memory_options()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; sizes in bytes.")
@click.pass_context
def doctor(
    context: click.Context,
    model: str | None,
    mmproj: str | None,
    ctx_size: int,
    kv_type: str,
    cross_kv_type: str,
    repack: bool,
    as_json: bool,
) -> None:
    """Look at the installation and the machine; with MODEL, say whether it fits in memory and with which settings.

    Exit code 0: all is well; 1: something is wrong, and it says what. MODEL is anything that `run` takes; only the
    headers of its files are read. `pyvllama show MODEL --fit` says the same of a model alone.

    \b
    pyvllama doctor
    pyvllama doctor models --ctx-size 32768
    """  # noqa: D301  click wants the character itself
    if model is None:
        refuse_given(context, (*MEMORY_OPTIONS, "mmproj"), "MODEL")
    findings = examination.examine()
    problems = [finding.problem for finding in findings if finding.problem]
    fit = None
    if model is not None:
        with ui.bytes_progress() as progress:
            pair = resolve(model, mmproj, progress=progress, note=ui.note)
        fit = examine_fit(pair, ctx_size, kv_type, cross_kv_type, repack=repack)
    if fit is not None and not fit["fits"]:
        problems.append(fit["problem"])
    if as_json:
        click.echo(json.dumps({"findings": list(map(asdict, findings)), "model": fit, "problems": problems}, indent=2))
    else:
        _print(findings, fit, problems)
    context.exit(EXIT_PROBLEM if problems else 0)


def _print(findings: list[examination.Finding], fit: dict[str, Any] | None, problems: list[str]) -> None:
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        click.echo(f"{finding.name:{width}}{finding.value}")
        if finding.hint:
            click.echo(f"{'':{width}}Hint: {finding.hint}")
    if fit is not None:
        click.echo("")
        print_fit(fit)
    click.echo("")
    for problem in problems:
        click.echo(f"Problem: {problem}")
    if not problems:
        click.echo("All is well." if fit is None else "All is well; the model fits.")
