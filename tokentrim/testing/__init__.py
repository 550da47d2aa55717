"""The contract suite: what every strategy and every adapter must do, as checks that their authors run.

    from tokentrim.testing import parametrize_with_checks

    @parametrize_with_checks(["my-pruner", {"name": "my-pruner", "keep_ratio": 0.2}])
    def test_contract(check):
        check()

Names are imported on first use: the pytest plugin of this package must not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.testing.doors import (
        check_adapter as check_adapter,
        check_strategy as check_strategy,
        checks_of as checks_of,
        parametrize_with_checks as parametrize_with_checks,
    )
    from tokentrim.testing.outcome import ContractError as ContractError, Outcome as Outcome, Outcomes as Outcomes
    from tokentrim.testing.subjects import Example as Example, small_model as small_model

_HOME: Final = {
    "check_adapter": "doors",
    "check_strategy": "doors",
    "checks_of": "doors",
    "parametrize_with_checks": "doors",
    "ContractError": "outcome",
    "Outcome": "outcome",
    "Outcomes": "outcome",
    "Example": "subjects",
    "small_model": "subjects",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]  # the names are lazy


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokentrim.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokentrim.testing.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *_HOME})
