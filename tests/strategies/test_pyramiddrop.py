"""``pyramiddrop``: counts at its cuts in any depth, and whose row it reads; the ranking itself is in test_golden."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim.errors import StrategyError
from tokentrim.session import trim
from tokentrim_strategies.pyramiddrop import PyramidDrop


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        (32, ((8, 288), (16, 144), (24, 72))),
        (28, ((7, 288), (14, 144), (21, 72))),
        (6, ((1, 288), (3, 144), (4, 72))),
        (2, ((1, 72),)),  # the last cut counts
    ],
)
def test_counts_at_the_published_share_of_the_depth(layers: int, steps: tuple[tuple[int, int], ...]):
    assert PyramidDrop().schedule(model_shape(layers), 576).steps == steps


def test_shares_are_of_the_original_tokens_and_round_down():
    strategy = PyramidDrop(boundaries=(2, 4), shares=(0.3, 0.1))
    assert strategy.schedule(model_shape(), 35).steps == ((2, 10), (4, 3))
    assert PyramidDrop(keep_ratio=0.3).schedule(model_shape(), 1000).steps == ((8, 300), (16, 90), (24, 27))
    assert "keep_ratio" not in strategy.label()


def test_meets_a_budget():
    """The mean of the published setting, 15 of 32 tokens, is found back; a fifth needs earlier cuts."""
    shape = PRESETS["llava-1.5-7b"]
    strategy, realised = PyramidDrop().at_budget(shape, 576, layer_mean_ratio=15 / 32)
    assert realised == 15 / 32
    assert strategy.schedule(shape, 576).steps == ((8, 288), (16, 144), (24, 72))
    with pytest.raises(StrategyError, match="keep_ratio"):
        PyramidDrop().at_budget(shape, 576, layer_mean_ratio=0.2)
    _, realised = PyramidDrop(boundaries=(2, 4, 8)).at_budget(shape, 576, layer_mean_ratio=1 / 9)
    assert realised == pytest.approx(1 / 9, abs=2e-3)


def test_scores_are_the_mean_over_heads_of_the_row_that_is_asked_for():
    own, before = attention(2, 3, 5, seed=1), attention(2, 3, 5, seed=2)
    for row, need, values in (("own", Need.NEXT_ROW, own), ("before", Need.LAST_ROW, before)):
        strategy = PyramidDrop(row=row)  # type: ignore[arg-type]
        assert strategy.needed() == {need}
        torch.testing.assert_close(strategy.score(layer_site((5, 5), {need: values}, boundary=8)), values.mean(1))


def test_the_layers_own_row_is_that_of_an_unpruned_run():
    """A first cut in front of layer 2 keeps what the last token attends to most in layer 2 of the untouched model."""
    model = tiny_llava(side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5])
    with torch.no_grad():
        row = model(**inputs, output_attentions=True).attentions[2][0, :, -1, 3:19].mean(0)
        with trim(model, PyramidDrop(boundaries=(2,), keep_ratio=0.25)) as session:
            model(**inputs)
    assert session.trace.kept(2).tolist() == sorted(row.topk(4).indices.tolist())


@pytest.mark.parametrize(
    "values",
    [
        {"boundaries": (0, 4)},
        {"boundaries": (4, 4)},
        {"boundaries": ()},
        {"shares": (0.5, 0.25)},
        {"shares": (0.5, 0.25, 0.1), "keep_ratio": 0.5},
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, object]):
    with pytest.raises(ValidationError):
        PyramidDrop.model_validate(values)


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(StrategyError, match="boundaries"):
        PyramidDrop(boundaries=(40,)).schedule(model_shape(), 576)
    with pytest.raises(StrategyError, match="never rise"):
        PyramidDrop(shares=(0.2, 0.3, 0.1)).schedule(model_shape(), 576)
