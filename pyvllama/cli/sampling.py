"""Sampling options: one table for the command line and for `/set` in a chat."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from pyvllama.errors import ConfigError
from pyvllama.types import SamplingParams

__all__ = ["SAMPLING", "SamplingOption", "check_sampling", "read_sampling", "sampling_options", "shown_sampling"]


@dataclass(frozen=True)
class SamplingOption:
    """One of them.

    Attributes:
        name: as SamplingParams has it.
        type: what reads its value.
        help: one line.
        is_list: may be given more than once.
    """

    name: str
    type: click.ParamType[Any]
    help: str
    is_list: bool = False

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


SAMPLING = {
    option.name: option
    for option in (
        SamplingOption("max_tokens", click.IntRange(min=1), "Longest answer, in tokens."),
        SamplingOption("temperature", click.FloatRange(min=0), "0 is greedy. Default: the model's own."),
        SamplingOption("top_p", click.FloatRange(0, 1), "Nucleus sampling; 1 is off."),
        SamplingOption("top_k", click.IntRange(min=0), "Likeliest tokens to choose from; 0 is off."),
        SamplingOption("min_p", click.FloatRange(0, 1), "Least relative probability; 0 is off."),
        SamplingOption("repeat_penalty", click.FLOAT, "Divides logits of recent tokens; 1 is off."),
        SamplingOption("presence_penalty", click.FLOAT, "OpenAI's; 0 is off."),
        SamplingOption("frequency_penalty", click.FLOAT, "OpenAI's; 0 is off."),
        SamplingOption("seed", click.IntRange(min=0), "Same seed, same answer."),
        SamplingOption("stop", click.STRING, "End the answer before this text; repeatable.", is_list=True),
    )
}


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator that gives a click command all of them."""
    for option in reversed(SAMPLING.values()):
        metavar = "TEXT" if option.is_list else None
        command = click.option(
            option.flag, type=option.type, multiple=option.is_list, metavar=metavar, help=option.help
        )(command)
    return command


def check_sampling(options: Mapping[str, Any]) -> None:
    """Refuse what `LLM.chat` would refuse.

    Raises:
        ConfigError: an option of another name, or out of range.
    """
    if unknown := sorted(set(options) - set(SAMPLING)):
        raise ConfigError(f"there is no option {', '.join(unknown)}: {', '.join(SAMPLING)} are known")
    SamplingParams.from_options(SamplingParams(), dict(options))


def read_sampling(text: str) -> tuple[str, Any]:
    """What stands behind `/set`: `temperature 0.2`, `top-p=0.9`, `stop "a b" c`; `default` takes a choice back.

    Returns:
        The option's name and its value; None for `default`.

    Raises:
        ConfigError: there is no such option, or that is no value for it.
    """
    name, _, value = text.replace("=", " ", 1).partition(" ")
    option = SAMPLING.get(name.strip("-").replace("-", "_"))
    value = value.strip()
    if option is None:
        raise ConfigError(f"there is no option {name}: {', '.join(SAMPLING)} are known")
    if not value:
        raise ConfigError(f"{option.name} needs a value, or `default`. {option.help}")
    if value == "default":
        return option.name, None
    try:
        read = shlex.split(value) if option.is_list else option.type.convert(value, None, None)
    except (click.BadParameter, ValueError) as e:
        raise ConfigError(f"{option.name}: {getattr(e, 'message', None) or e}") from e
    check_sampling({option.name: read})
    return option.name, read


def shown_sampling(chosen: Mapping[str, Any], defaults: SamplingParams) -> str:
    """All options with their values, one a line; those that were chosen are marked."""
    values = {**asdict(defaults), **chosen}
    width = max(map(len, SAMPLING))
    lines = []
    for name, option in SAMPLING.items():
        value = values[name]
        if option.is_list:
            value = shlex.join(value)
        mark = "*" if name in chosen else " "
        lines.append(f"{mark} {name:{width}}  {'-' if value in (None, '') else value!s:8}  {option.help}")
    return "\n".join(lines)
