"""`pyvllama serve`: OpenAI's and Ollama's APIs and a web page."""

import re
from pathlib import Path
from typing import Any

import click

from pyvllama.cli import ui
from pyvllama.cli.options import load_options
from pyvllama.locate import as_path
from pyvllama.resolve import resolve
from pyvllama.server.settings import DEFAULT_PORT, OLLAMA_PORT, Settings, read_api_keys

__all__ = ["serve"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DEFAULT_N_CTX = 8192


class Duration(click.ParamType[float]):
    """Seconds: a number, or one with s, m or h behind it; below zero stands for "for ever", None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The seconds, or -1."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration: write seconds, or a number with s, m or h, such as 5m", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _some_or_none(seconds: float) -> float | None:
    return None if seconds < 0 else seconds


_LISTENING = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at."),
    click.option("--port", type=click.IntRange(0, 65535), help="Default: 8080, with --ollama 11434; 0: any free one."),
    click.option("--ollama", is_flag=True, help="Stand in for Ollama: listen at its port; clients may fetch and "
                 "delete models."),
    click.option("--api-key", "api_keys", multiple=True, envvar="PYVLLAMA_API_KEY", metavar="KEY",
                 help="Key that clients must send; repeatable. Others see it in the list of processes: better "
                 "--api-key-file, or the environment variable PYVLLAMA_API_KEY."),
    click.option("--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line."),
    click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
                 help="Web pages of this origin may use the server; repeatable; * for all. Default: none."),
    click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
                 help="A further name that clients reach the server by; repeatable."),
    click.option("--grace", type=Duration(), default="10", show_default=True,
                 help="What running answers are given at Ctrl-C or SIGTERM."),
)  # fmt: skip
_MODELS = (
    click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further name of the model; repeatable."),
    click.option("-np", "--parallel", type=click.IntRange(1, 256), default=4, show_default=True,
                 help="Answers that are generated at a time; they share the context."),
    click.option("--max-queue", type=click.IntRange(min=0), default=64, show_default=True,
                 help="Requests that may wait; more are answered 429."),
    click.option("--timeout", type=Duration(), default="-1", help="Longest time for a request. Default: none."),
    click.option("--keep-alive", type=Duration(), default="-1",
                 help="Unload a model so long after its last use, e.g. 5m. Default: never."),
    click.option("--max-models", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Models in memory at a time."),
    click.option("--image-cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Keep encoded pictures in files there, for the next time."),
)  # fmt: skip
_REQUESTS = (
    click.option("--media-path", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Clients may name pictures below this directory by path. Default: no paths."),
    click.option("--allow-private-urls", is_flag=True,
                 help="Fetch pictures from private addresses and this machine too."),
    click.option("--max-image", type=click.IntRange(min=1), default=64, show_default=True, metavar="MIB",
                 help="Largest picture, in MiB."),
    click.option("--max-body", type=click.IntRange(min=1), default=128, show_default=True, metavar="MIB",
                 help="Largest request, in MiB."),
    click.option("--grammars/--no-grammars", default=True, show_default=True,
                 help="Whether clients may send grammars, JSON schemas and tools: small ones can keep all others "
                 "waiting for minutes."),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
                 help="Of the line that each request leaves on stderr."),
    click.option("--log-prompts", is_flag=True, help="Log what clients say too."),
)  # fmt: skip


def _options(command: Any) -> Any:
    for option in reversed((*_LISTENING, *_MODELS, *_REQUESTS)):
        command = option(command)
    return command


@click.command()
@click.argument("model", required=False)
@_options
@load_options(_DEFAULT_N_CTX)
def serve(model: str | None, **given: Any) -> None:
    """Serve OpenAI's and Ollama's APIs, and a web page to look at. MODEL is anything that `run` takes.

    Only programs on this machine reach it unless --host says otherwise. Ctrl-C stops it.

    \b
    pyvllama serve models
    pyvllama serve models --ollama                         for apps that expect Ollama
    pyvllama serve models --host 0.0.0.0 --api-key-file keys.txt
    curl http://localhost:8080/v1/models
    """  # noqa: D301  click wants the character itself
    from pyvllama.server.app import create_app  # noqa: PLC0415 (FastAPI costs other commands half a second)
    from pyvllama.server.http_server import HttpServer, bind  # noqa: PLC0415
    from pyvllama.server.request_log import set_up_logging  # noqa: PLC0415

    settings = _settings(model, given)
    if model is None:
        ui.note("No model named: using the bundled pocket model (coloured shapes and short texts only).")
    if text := warning(settings):
        ui.note(text)
    set_up_logging(settings.log_format)
    with bind(settings.host, settings.port) as sock:
        server = HttpServer(create_app(settings), sock)
        ui.note(greeting(settings.host, server.port, has_key=bool(settings.api_keys)))
        server.listen()


def _settings(model: str | None, given: dict[str, Any]) -> Settings:
    """The settings, with the model's files found, fetched or made: that takes time and shows a bar."""
    keys = given["api_keys"]
    if given["api_key_file"] is not None:
        keys += read_api_keys(given["api_key_file"])
    ollama, port = given["ollama"], given["port"]
    settings = Settings(
        model=model,
        mmproj=given["mmproj"],
        aliases=given["aliases"],
        text_type=given["text_type"],
        n_ctx=given["ctx_size"],
        n_threads=given["threads"],
        n_gpu_layers=given["gpu_layers"],
        mmproj_offload=given["mmproj_offload"],
        repack=given["repack"],
        kv_type=given["kv_type"],
        cross_kv_type=given["cross_kv_type"],
        image_cache_dir=given["image_cache"],
        parallel=given["parallel"],
        max_queue=given["max_queue"],
        deadline_s=_some_or_none(given["timeout"]),
        keep_alive_s=_some_or_none(given["keep_alive"]),
        max_models=given["max_models"],
        grace_s=given["grace"],
        host=given["host"],
        port=port if port is not None else OLLAMA_PORT if ollama else DEFAULT_PORT,
        manage_models=ollama,
        api_keys=keys,
        cors_origins=given["cors_origins"],
        allowed_hosts=given["allowed_hosts"],
        media_path=given["media_path"],
        allow_private_urls=given["allow_private_urls"],
        max_image_bytes=given["max_image"] << 20,
        max_body_bytes=given["max_body"] << 20,
        grammars=given["grammars"],
        log_format=given["log_format"],
        log_prompts=given["log_prompts"],
    )
    with ui.bytes_progress() as converting:
        pair = resolve(model, settings.mmproj, text_type=settings.text_type, progress=converting, note=ui.note)
    return settings.with_pair(pair, () if model is None or as_path(model).exists() else (model,))


def warning(settings: Settings) -> str | None:
    """What somebody should know who lets others in."""
    if settings.is_loopback or settings.api_keys:
        return None
    return (
        f"Warning: everybody who reaches {settings.host} can use this server. Set --api-key-file, or listen at "
        "127.0.0.1."
    )


def greeting(host: str, port: int, *, has_key: bool) -> str:
    """Where the server is, and what to try."""
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "[::]") else host
    url = f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    return f"Listening at {url} (OpenAI: {url}/v1, Ollama: {url}). Try: curl{key} {url}/v1/models"
