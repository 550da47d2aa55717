"""The contract suite: what every strategy and every adapter must do, as checks that their authors run.

    from tokentrim.testing import parametrize_with_checks

    @parametrize_with_checks(["my-pruner", {"name": "my-pruner", "keep_ratio": 0.2}])
    def test_contract(check):
        check()

Names are imported on first use: the pytest plugin of this package must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.testing.doors import (
        check_adapter as check_adapter,
        check_strategy as check_strategy,
        checks_of as checks_of,
        parametrize_with_checks as parametrize_with_checks,
    )
    from tokentrim.testing.outcome import (
        CheckOutcome as CheckOutcome,
        ContractError as ContractError,
        Outcomes as Outcomes,
    )
    from tokentrim.testing.subjects import Example as Example, small_model as small_model

# The pytest plugin of this package must not import torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "testing.doors": "check_adapter, check_strategy, checks_of, parametrize_with_checks",
        "testing.outcome": "CheckOutcome, ContractError, Outcomes",
        "testing.subjects": "Example, small_model",
    },
)
