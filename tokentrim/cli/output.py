"""What commands print: results on stdout, everything else on stderr, and never a user's text as markup."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, ClassVar, Final, TextIO

from typer.core import TyperCommand

from tokentrim.errors import StrategyError, TokentrimError, reason_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_PLAIN_WIDTH = 160  # of tables in a file or pipe, where nothing says how wide a line may be

# Line ends and tabs are text; the last two ranges turn the direction of writing.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class RunFailed(TokentrimError):
    """A run that started and did not end well."""

    exit_code: ClassVar[int] = 1


def placement(
    device: str | None, dtype: str | None, attn_implementation: str | None = None, device_map: str | None = None
) -> dict[str, Any]:
    """What the options say of how a model is loaded, as the keys of a file that names one; not yet checked.

    Raises:
        ConfigError: for a device map that opens a mapping and is no YAML.
    """
    from tokentrim.config.yaml_reader import is_inline, parse_yaml

    spread: Any = device_map
    if device_map is not None and is_inline(device_map):
        spread = parse_yaml(device_map, "--device-map").data
    given = {"device": device, "dtype": dtype, "attn_implementation": attn_implementation, "device_map": spread}
    return {key: value for key, value in given.items() if value is not None}


def formats_of(chosen: list[str] | None) -> list[str]:
    """What ``--format`` names, written once per format or with commas."""
    return [name.strip() for names in chosen or () for name in names.split(",")]


def listed(given: list[str] | None) -> list[str]:
    """The values of an option that takes several, with commas between them or by being repeated; none is empty."""
    from tokentrim.bench.options import split_strategies

    return [piece for text in given or () for piece in split_strategies(text)]


_results: list[TextIO] = []  # where results go while whatever else is printed goes to stderr


class Command(TyperCommand):
    """A command whose results are alone on stdout: what plugins, models and libraries print goes to stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        _results.append(sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                return super().invoke(ctx)
        finally:
            _results.pop()


def write(text: str) -> None:
    """A result on stdout, as it is."""
    (_results[-1] if _results else sys.stdout).write(escaped(text))


def escaped(text: str) -> str:
    """``text`` with control characters written out: somebody else's name must not steer a terminal."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def console(*, to_stderr: bool = False) -> Console:
    """A console on stdout or stderr; neither markup nor control characters in text are interpreted."""
    from rich.console import Console

    class Plain(Console):
        """Every text comes here before it is measured and printed."""

        def render_str(self, text: str, **how: Any) -> Text:  # type: ignore[override]
            return super().render_str(escaped(text), **how)

    stream = sys.stderr if to_stderr else _results[-1] if _results else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Plain(file=stream, width=width, markup=False, highlight=False, emoji=False)


def plain_table(*titles: str, **look: Any) -> Table:
    """A table without lines, its titles dim."""
    from rich.table import Table

    return Table(*titles, box=None, header_style="dim", pad_edge=False, **look)


def facts(out: Console, lines: Mapping[str, Any], width: int) -> None:
    """A line for each thing to know, its name in ``width`` columns."""
    for name, value in lines.items():
        out.print(f"{name:<{width}} {value}", soft_wrap=True)


def on_one_line(strategy: dict[str, Any]) -> str:
    """A strategy as ``--strategy`` takes it."""
    import yaml

    return yaml.safe_dump(strategy, default_flow_style=True, width=1000).strip()


@contextmanager
def started(what: str) -> Generator[None]:
    """A run that has started: what breaks it now is no bad input, which was looked for before.

    Raises:
        RunFailed: in place of what a strategy, a model or torch raises.
    """
    try:
        yield
    except StrategyError as error:
        raise RunFailed(str(error)) from error
    except TokentrimError:
        raise
    except Exception as error:  # a model's settings lead it to whatever it raises
        raise RunFailed(f"{what} failed: {reason_of(error)}") from error


def emit(data: Any) -> None:
    """JSON on stdout."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    write(_CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")


def complain(error: object) -> None:
    """One paragraph on stderr."""
    from rich.text import Text

    out = console(to_stderr=True)
    out.print(Text.assemble(("error: ", "bold red"), escaped(str(error))), soft_wrap=True)


def warn_in_one_line() -> None:
    """Show our own warnings as errors are shown; those of libraries keep their form."""
    import warnings

    from tokentrim.plugins.loader import PluginWarning

    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, PluginWarning):
            show(message, category, *place, **more)
            return
        from rich.text import Text

        console(to_stderr=True).print(
            Text.assemble(("warning: ", "bold yellow"), escaped(str(message))), soft_wrap=True
        )

    warnings.showwarning = shown


def quiet_libraries() -> None:
    """Keep transformers' notes about generation settings out of our output; warnings still show."""
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
