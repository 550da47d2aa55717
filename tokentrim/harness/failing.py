"""Failures that lmms-eval's command would print and then forget, because it ends every run with exit code 0."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager

from tokentrim.errors import TokentrimError

_FAILED = 1


@contextmanager
def let_out(*, bad_input: bool = False) -> Generator[None, None, None]:
    """Let exceptions end the process when lmms-eval's command is at work, and pass through anything else's call.

    Args:
        bad_input: whether our own errors are about what the user wrote, and so exit with 2 instead of 1.

    Raises:
        SystemExit: under lmms-eval's command; nothing there catches it, and other processes of the run are ended too.
    """
    try:
        yield
    except Exception as cause:
        if not _under_command():
            raise
        if isinstance(cause, TokentrimError):
            sys.stderr.write(f"tokentrim: {cause}\n")
        else:
            traceback.print_exception(cause)
        sys.stderr.flush()
        code = cause.exit_code if bad_input and isinstance(cause, TokentrimError) else _FAILED
        raise SystemExit(code) from cause


def _under_command() -> bool:
    """Whether lmms-eval's ``cli_evaluate``, which catches what a model raises, has called us."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "cli_evaluate" and frame.f_globals.get("__package__") == "lmms_eval":
            return True
        frame = frame.f_back
    return False
