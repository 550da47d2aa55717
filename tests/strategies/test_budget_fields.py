"""The keep_ratio / keep_count pair and the boundary, as every strategy with one cut has them."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from tests.strategies.sites_factory import model_shape
from tokentrim.contracts.knobs import turned
from tokentrim.contracts.strategy import Strategy
from tokentrim.errors import StrategyError
from tokentrim_strategies._keeping import Keeping
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.oracle import Oracle
from tokentrim_strategies.pool import Pool
from tokentrim_strategies.pvtp import PVTP
from tokentrim_strategies.random_control import Random
from tokentrim_strategies.st3 import ST3
from tokentrim_strategies.text_only import TextOnly
from tokentrim_strategies.uniform import Uniform
from tokentrim_strategies.vta import VTA

ONE_CUT: list[type[Keeping]] = [FastV, Oracle, Pool, Random, Uniform]


@pytest.mark.parametrize("cls", ONE_CUT)
def test_ratio_and_count_exclude_each_other(cls: type[Keeping]):
    assert cls().keep_ratio == (0.5 if cls is FastV else 0.25)
    assert cls(keep_count=7).keep_ratio is None
    assert cls(keep_count=7) == cls(keep_ratio=None, keep_count=7)
    for wrong in ({"keep_ratio": 0.5, "keep_count": 7}, {"keep_ratio": None}, {"keep_ratio": None, "keep_count": None}):
        with pytest.raises(ValidationError, match="must be either keep_ratio or keep_count; got"):
            cls.model_validate(wrong)


@pytest.mark.parametrize("cls", ONE_CUT)
@pytest.mark.parametrize("given", [{}, {"keep_count": 7}, {"keep_ratio": 0.125}, {"positions": "renumber"}])
def test_survives_its_spec_and_the_budget_solver(cls: type[Keeping], given: dict[str, Any]):
    strategy = cls(**given)
    spec = strategy.spec()
    assert spec.pop("name") == cls.name
    assert cls(**spec) == strategy
    assert turned(strategy, "keep_ratio", 0.3125, "any") == cls(**{**given, "keep_count": None, "keep_ratio": 0.3125})


def test_label_names_only_what_differs():
    assert FastV().label() == "fastv"
    assert FastV(keep_count=7).label() == "fastv(keep_count=7)"
    assert Random(keep_ratio=0.1, seed=3).label() == "random(keep_ratio=0.1, seed=3)"


@pytest.mark.parametrize("cls", ONE_CUT)
@given(n=st.integers(0, 5000), share=st.integers(0, 1000))
def test_ratio_is_floored_exactly(cls: type[Keeping], n: int, share: int):
    assert cls(keep_ratio=share / 1000).count_of(n) == n * Fraction(share, 1000) // 1


@pytest.mark.parametrize("cls", [FastV, Oracle, Random, Uniform])
@given(n=st.integers(0, 700), count=st.integers(0, 700))
def test_count_is_never_above_what_is_there(cls: type[Keeping], n: int, count: int):
    ((_, kept),) = cls(keep_count=count).schedule(model_shape(), n)
    assert kept == min(count, n)


@pytest.mark.parametrize("ratio", [1.7, -0.1, math.nan, math.inf, "half"])
@pytest.mark.parametrize("cls", ONE_CUT)
def test_bad_ratio_is_refused(cls: type[Keeping], ratio: object):
    with pytest.raises(ValidationError):
        cls.model_validate({"keep_ratio": ratio})


@pytest.mark.parametrize(
    ("cls", "parameter", "value"),
    [
        (Random, "keep_count", -1),
        (Random, "boundary", -1),
        (Random, "seed", -1),
        (FastV, "k", 0),
        (FastV, "query", "text"),
        (FastV, "keep", 0.5),
        (TextOnly, "k", -1),
        (PVTP, "start", 0),
        (PVTP, "stride", 0),
        (PVTP, "prune_ratio", 1.7),
        (PVTP, "rule", "exponential"),
        (PVTP, "query", "all"),
        (VTA, "attenuation", "sqrt"),
        (VTA, "horizon", 0),
        (VTA, "floor", 1.7),
        (VTA, "every", 0),
        (VTA, "ranking", "last"),
        (ST3, "prune_ratio", -0.1),
        (ST3, "preset", "llava-1.5-7b"),
    ],
)
def test_bad_parameter_is_refused(cls: type[Strategy], parameter: str, value: object):
    with pytest.raises(ValidationError, match=parameter):
        cls.model_validate({parameter: value})


@pytest.mark.parametrize(
    ("strategy", "whom"),
    [
        (FastV(k=8), "k of strategy 'fastv'"),
        (TextOnly(k=9), "k of strategy 'text-only'"),
        (Random(boundary=8), "boundary of strategy 'random'"),
        (Uniform(boundary=8), "boundary of strategy 'uniform'"),
        (Oracle(boundary=8), "boundary of strategy 'oracle'"),
        (PVTP(start=8), "start of strategy 'pvtp'"),
        (ST3(start=8), "start of strategy 'pvtp'"),
    ],
)
def test_boundary_past_the_last_layer_is_refused(strategy: Strategy, whom: str):
    (part,) = strategy.spatial_parts
    with pytest.raises(StrategyError, match=rf"^{whom} must be below 8, the number of decoder layers; got [89]\. "):
        part.schedule(model_shape(n_layers=8), 64)


def test_budgets_take_a_replaced_parameter_back():
    """Matching turns the declared parameter, whatever stood in its place."""
    from tokentrim.contracts.knobs import turned
    from tokentrim_strategies.tome import ToMe
    from tokentrim_strategies.vtw import Withdrawal

    assert turned(ToMe(r=3), "keep_ratio", 0.5, "tome") == ToMe(keep_ratio=0.5)
    assert turned(Withdrawal(k=3), "depth", 0.25, "vtw") == Withdrawal(depth=0.25)
    assert Withdrawal(k=3).label() == "vtw(k=3)"
