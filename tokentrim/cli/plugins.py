"""``tokentrim plugins``: what was loaded, from where, and what failed."""

from __future__ import annotations

from dataclasses import asdict

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, plain_table
from tokentrim.plugins.loader import LIMIT_VARIABLE, checked_infos


def plugins(as_json: options.AsJson = False) -> None:
    """List plugins: their distribution, what they provide, and why one cannot be used, as a whole or in part."""
    infos = checked_infos(builtins=False)  # the doctor checks those that came with tokentrim
    if as_json:
        emit([asdict(info) for info in infos])
        return
    table = plain_table("plugin", "distribution", "status", "provides")
    for info in infos:
        provided: dict[str, list[str]] = {}
        for name in info.provides:
            kind, _, rest = name.partition(":")
            provided.setdefault(kind, []).append(rest)
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in provided.items())
        table.add_row(
            info.name, f"{info.distribution} {info.version}", info.status, "\n".join(filter(None, (text, info.error)))
        )
    out = console()
    out.print(table)
    out.print(
        f"{LIMIT_VARIABLE}=NAME,OTHER limits what loads beside the built-ins; --no-plugins loads no other.",
        style="dim",
    )
