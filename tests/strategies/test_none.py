"""``none`` has no part, and so nothing to decide."""

from tokentrim.contracts.strategy import Parts
from tokentrim_strategies.none import NoPruning


def test_has_no_parts():
    strategy = NoPruning()
    assert strategy.parts() == Parts()
    assert strategy.needed() == frozenset()
    assert (strategy.name, strategy.stage, strategy.budget_knob) == ("none", "none", None)
    assert strategy.label() == "none"
