"""Three doors to the same checks, and expected failures that are strict."""

from __future__ import annotations

import pytest

from tokentrim.errors import ConfigError, UnknownNameError
from tokentrim.testing import check_strategy, checks_of, parametrize_with_checks

NOT_MERGED = {"few_tokens_are_enough": "it does not"}


@parametrize_with_checks([{"name": "fastv", "keep_ratio": 0.3}], families=[])
def test_the_decorator_makes_one_test_per_check(check):
    check()


def test_all_at_once():
    outcomes = check_strategy("uniform", families=[])
    assert [outcome.name for outcome in outcomes] == [name for name, _ in checks_of("uniform", families=[])]
    assert {outcome.status for outcome in outcomes} == {"passed", "skipped"}
    assert "drop_is_mask" in str(outcomes)


def test_an_expected_failure_that_passes_is_a_failure():
    outcomes = check_strategy("uniform", families=[], expected_failures={"runs": "it cannot"}, raises=False)
    assert [outcome.name for outcome in outcomes.failed] == ["runs"]
    assert "Take it out of expected_failures" in outcomes.failed[0].text


def test_a_misspelt_check_or_strategy_is_refused():
    with pytest.raises(ConfigError, match="name a check; got 'run'. Did you mean 'runs'"):
        check_strategy("uniform", families=[], expected_failures={"run": "no"})
    with pytest.raises(ConfigError, match="be a list"):
        parametrize_with_checks("uniform")
    with pytest.raises(UnknownNameError, match="Did you mean 'uniform'"):
        list(checks_of("unifrom"))
