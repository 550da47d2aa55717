"""``vtw`` leaves no visual token behind its boundary, and is FastV with nothing kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.engine.cases import generate
from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import StrategyError
from tokentrim.session import trim
from tokentrim_strategies.vtw import Withdrawal


@pytest.mark.parametrize(("layers", "k"), [(32, 16), (40, 20), (12, 6), (7, 3)])
def test_half_of_the_depth_by_default(layers: int, k: int):
    assert Withdrawal().schedule(model_shape(layers), 576) == Schedule.of({k: 0})


def test_k_takes_the_place_of_depth():
    assert Withdrawal(k=15).depth is None
    assert Withdrawal(k=15).schedule(model_shape(), 576) == Schedule.of({15: 0})
    assert Withdrawal(k=15).label() == "vtw(k=15)"
    spec = Withdrawal(k=15).spec()
    assert spec.pop("name") == "vtw"
    assert Withdrawal(**spec) == Withdrawal(k=15)


@pytest.mark.parametrize("wrong", [{"depth": 0.5, "k": 4}, {"depth": None}, {"depth": None, "k": None}])
def test_one_of_the_two(wrong: dict[str, Any]):
    with pytest.raises(ValidationError, match="must be either depth or k; got"):
        Withdrawal.model_validate(wrong)


@pytest.mark.parametrize("wrong", [{"depth": 1.2}, {"depth": -0.1}, {"k": -1}, {"depth": float("nan")}])
def test_out_of_range(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Withdrawal.model_validate(wrong)


def test_boundary_past_the_last_layer_is_refused():
    with pytest.raises(StrategyError, match="^k of strategy 'vtw' must be below 8"):
        Withdrawal(k=8).schedule(model_shape(8), 64)


def test_the_whole_depth_withdraws_nothing():
    assert Withdrawal(depth=1).schedule(model_shape(), 576) == Schedule()
    assert plan(Withdrawal(depth=1), model_shape(), 576).usage.layer_mean_ratio == 1


@pytest.mark.parametrize("wanted", [1.0, 0.5, 0.3, 0.2, 0.0])
def test_budgets_are_met_to_a_layer(wanted: float):
    shape = PRESETS["llava-1.5-7b"]
    strategy, realised = Withdrawal().at_budget(shape, 576, layer_mean_ratio=wanted)
    assert wanted - 1 / 32 < realised <= wanted
    assert plan(strategy, shape, 576).usage.layer_mean_ratio == realised


def test_selection_is_empty():
    selection = Withdrawal().select(layer_site((5, 3)), counts_tensor(0, 0))
    selection.check((5, 3), static=(0, 0))
    assert selection.kept.shape == (2, 0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_is_fastv_with_nothing_kept(k: int):
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    with trim(model, {"name": "vtw", "k": k}):
        ids, logits = generate(model, inputs, 4)
    with trim(model, {"name": "fastv", "k": k, "keep_count": 0}):
        expected_ids, expected = generate(model, inputs, 4)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(logits, expected)
