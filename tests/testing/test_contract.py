"""Every registered strategy passes the contract that plugins are held to.

Their names come from the live registry: a strategy that is added is checked without a line here. Other families are
gone through in tests/adapters, with prompts of many sizes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.cases import SPECS
from tokentrim.config.specs import strategy_from
from tokentrim.testing import checks_of, parametrize_with_checks

_FIRST = {strategy_from(spec).strategy.name: name for name, spec in reversed(SPECS.items())}
"""One configuration of each strategy, and the composition."""
_OTHERS = [name for name in SPECS if name not in _FIRST.values()]
_OF_OTHERS = ("sets_are_nested", "text_is_kept", "plan_is_met", "more_attention_never_scores_lower")

_EXPECTED = {
    "evs": {"prunes": "the small models are shown images, which it leaves whole: see tests/strategies/test_evs.py"}
}


def _expected(spec: Any) -> dict[str, str]:
    return _EXPECTED.get(strategy_from(spec).strategy.name, {})


@parametrize_with_checks([SPECS[name] for name in _FIRST.values()], families=[], expected_failures=_expected)
def test_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize("name", _OTHERS)
def test_contract_of_other_configurations(name: str) -> None:
    found = dict(checks_of(SPECS[name], families=[]))
    outcomes = [found[check].outcome() for check in _OF_OTHERS]
    assert not [outcome for outcome in outcomes if outcome.status == "failed"]
