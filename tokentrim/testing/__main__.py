"""``python -m tokentrim.testing my-pruner``: the contract suite without pytest, as a table."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from tokentrim.errors import TokentrimError
from tokentrim.progress import progress_on
from tokentrim.testing import check_adapter, check_strategy


def main(arguments: list[str] | None = None) -> int:
    """Check what is named, print what became of it; returns the exit code: 0, 1 (a check failed) or 2 (bad input)."""
    parser = argparse.ArgumentParser(prog="python -m tokentrim.testing", description="Check a strategy or an adapter.")
    parser.add_argument("subject", help="a strategy: registered name, inline YAML or YAML file; or an adapter's name")
    parser.add_argument("--adapter", action="store_true", help="the subject is an adapter")
    parser.add_argument("--family", action="append", help="model type to run it on (repeatable; default: all)")
    given = parser.parse_args(arguments)
    check = check_adapter if given.adapter else check_strategy
    try:
        with progress_on(Console(file=sys.stderr), "checks") as progress:
            outcomes = check(given.subject, families=given.family, raises=False, progress=progress)
    except TokentrimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{outcomes}\n")
    return 1 if outcomes.failed else 0


if __name__ == "__main__":
    sys.exit(main())
