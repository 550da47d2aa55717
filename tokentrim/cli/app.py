"""The ``tokentrim`` command: its subcommands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokentrim import __version__
from tokentrim.cli.bench import bench
from tokentrim.cli.calibrate import calibrate
from tokentrim.cli.chat import chat
from tokentrim.cli.cite import cite
from tokentrim.cli.compare import compare
from tokentrim.cli.demo import demo
from tokentrim.cli.doctor import doctor
from tokentrim.cli.explain import explain
from tokentrim.cli.ls import ls
from tokentrim.cli.new_plugin import new_plugin
from tokentrim.cli.output import Command, complain, warn_in_one_line
from tokentrim.cli.plan import plan
from tokentrim.cli.plugins import plugins
from tokentrim.cli.report import report
from tokentrim.cli.run import run
from tokentrim.cli.schema import schema
from tokentrim.cli.serve import serve
from tokentrim.cli.show import show
from tokentrim.cli.train import train
from tokentrim.cli.validate import validate
from tokentrim.errors import TokentrimError

_INTERRUPTED = 130  # what a shell reports for Ctrl-C
_NO_PLUGINS = "--no-plugins"


class _Group(TyperGroup):
    """Turns our errors into one paragraph and an exit code: 1 a run failed, 2 bad input."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An option of every command may stand before or behind the command's name."""
        everywhere = [word for word in args if word == _NO_PLUGINS]
        return super().parse_args(ctx, [*everywhere, *(word for word in args if word != _NO_PLUGINS)])

    def invoke(self, ctx: Any) -> Any:
        warn_in_one_line()
        try:
            return super().invoke(ctx)
        except TokentrimError as error:
            complain(error)
            raise typer.Exit(error.exit_code) from error
        except ImportError:
            from tokentrim.loading import require_fitting_torchvision

            try:
                require_fitting_torchvision()
            except TokentrimError as error:
                complain(error)
                raise typer.Exit(error.exit_code) from error
            raise
        except KeyboardInterrupt as error:
            complain("stopped. What was finished is kept: run the same command again to go on.")
            raise typer.Exit(_INTERRUPTED) from error
        except BrokenPipeError as error:
            # The reader of our output has gone (as in "tokentrim ls | head"); the interpreter's own flush would raise.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokentrim {__version__}")
        raise typer.Exit


def _without_plugins(wanted: bool) -> None:
    if wanted:
        from tokentrim.plugins.loader import only_builtins

        only_builtins()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    no_plugins: Annotated[
        bool,
        typer.Option(
            _NO_PLUGINS,
            callback=_without_plugins,
            is_eager=True,  # other options may ask for registered names
            help="Load what comes with tokentrim and no plugin; before or behind any command.",
        ),
    ] = False,
) -> None:
    """Prune visual tokens of multimodal language models, and compare what that costs and loses."""


_COMMANDS = (
    run, chat, demo, explain, compare, report, plan, ls, show, cite, validate, train, bench, serve, plugins,
    new_plugin, schema, doctor,
)  # fmt: skip
for _command in _COMMANDS:
    app.command(cls=Command)(_command)
app.add_typer(calibrate, name="calibrate")


def main() -> None:
    """Entry point of the command line."""
    # Threads of a CPU build of torch wait for each other by spinning. Beside other work that takes the very time of the
    # one that is waited for. Read when torch is loaded, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app(prog_name="tokentrim")
