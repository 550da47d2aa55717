"""What is counted for vLLM's metrics endpoint: visual tokens that stayed, and visual tokens that went."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

NAME: Final = "tokentrim:visual_tokens"
"""Of the counter; the endpoint shows it as ``tokentrim:visual_tokens_total``."""


@cache
def _counter() -> Any:
    from prometheus_client import Counter  # which vLLM brings  # pyright: ignore[reportMissingImports]

    return Counter(NAME, "Visual tokens of the prompts, by what became of them: kept or dropped.", ["outcome"])


def count(kept: int, dropped: int) -> None:
    """Count the pictures of a prompt.

    Args:
        kept: visual tokens that enter the language model.
        dropped: those that do not.
    """
    _counter().labels("kept").inc(kept)
    _counter().labels("dropped").inc(dropped)
