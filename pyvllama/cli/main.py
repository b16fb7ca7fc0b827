"""The `pyvllama` program: its commands and what happens to their errors."""

import io
import logging
import sys
from typing import Any

import click

from pyvllama import __version__
from pyvllama.cli import ui
from pyvllama.cli.bench import bench
from pyvllama.cli.cache import cache
from pyvllama.cli.caption import caption
from pyvllama.cli.convert import convert
from pyvllama.cli.doctor import doctor
from pyvllama.cli.evaluate import evaluate
from pyvllama.cli.export import export
from pyvllama.cli.imatrix import imatrix
from pyvllama.cli.list_models import list_models
from pyvllama.cli.pull import pull
from pyvllama.cli.push import push
from pyvllama.cli.quantize import quantize
from pyvllama.cli.rm import rm
from pyvllama.cli.run import run
from pyvllama.cli.serve import serve
from pyvllama.cli.show import show
from pyvllama.errors import VllamaError

__all__ = ["main"]

ALIASES = {"ls": "list"}
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """Errors that we raise on purpose become one line and exit code 2, never a traceback."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VllamaError as e:
            ui.error(str(e))
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has gone
            sys.stderr.close()
            ctx.exit(EXIT_ERROR)
        except OSError as e:  # a full disk behind stdout, say
            ui.error(str(e))
            ctx.exit(EXIT_ERROR)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyvllama")
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log and our own on stderr.")
def main(verbose: bool) -> None:
    """Llama 3.2 Vision on your own machine.

    \b
    pyvllama run -i photo.jpg "What is this?"       the bundled pocket model
    pyvllama convert CHECKPOINT -o models           weights from Hugging Face to GGUF
    pyvllama run models -i photo.jpg                chat about a picture
    """  # noqa: D301  click wants the character itself
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold characters that an old terminal cannot show
            stream.reconfigure(errors="replace")
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr
    )


main.add_command(run)
main.add_command(serve)
main.add_command(caption)
main.add_command(convert)
main.add_command(quantize)
main.add_command(export)
main.add_command(show)
main.add_command(pull)
main.add_command(list_models)
main.add_command(rm)
main.add_command(push)
main.add_command(cache)
main.add_command(doctor)
main.add_command(imatrix)
main.add_command(evaluate)
main.add_command(bench)

if __name__ == "__main__":
    main()
