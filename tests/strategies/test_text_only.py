"""``text-only`` leaves no visual token."""

import pytest

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.text_only import TextOnly


@pytest.mark.parametrize("k", [0, 2, 31])
def test_nothing_passes_boundary_k(k: int):
    assert TextOnly(k=k).schedule(model_shape(), 576) == Schedule.of({k: 0})


def test_selection_is_empty():
    selection = TextOnly().select(layer_site((5, 3)), counts_tensor(0, 0))
    selection.check((5, 3), static=(0, 0))
    assert selection.kept.shape == (2, 0)


def test_schedule_is_that_of_fastv_with_nothing_kept():
    shape = model_shape()
    assert TextOnly(k=7).schedule(shape, 576) == FastV(k=7, keep_ratio=0).schedule(shape, 576)
