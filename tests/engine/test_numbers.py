"""Scores that are no numbers are an error, not an arbitrary answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import pytest
from torch import Tensor

from tests.engine.cases import SPECS
from tests.models import prompt, tiny_llava
from tokentrim import LayerSite, ModelShape, Need, Schedule, SpatialScorer, StrategyError, trim

_model = lru_cache(maxsize=1)(tiny_llava)


class Normalised(SpatialScorer):
    """Divides by the standard deviation, which is zero in pictures without any."""

    name: ClassVar[str] = "normalised"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})
    flat: bool = True

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        return Schedule.of({0: n_visual // 2, 2: n_visual // 4})

    def score(self, site: LayerSite) -> Tensor:
        norms = site.features.norm(dim=-1)
        return norms * 0 / 0 if self.flat and site.boundary == 2 else norms


def test_generate_raises_and_names_the_boundary() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", "image", 4])
    with trim(model, Normalised()) as session:
        with pytest.raises(StrategyError, match=r"scores of 'normalised' at boundary 2 must be numbers; got 'NaN'"):
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        session.report()  # said once
    with trim(model, Normalised(flat=False)) as session:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        session.report()


@pytest.mark.parametrize("ask", ["report", "leave"])
def test_a_plain_forward_says_so_later(ask: str) -> None:
    model = _model(side=4)
    inputs: dict[str, Any] = prompt(model, [3, "image", 5])
    session = trim(model, Normalised())
    session.__enter__()
    try:
        model(**inputs)
        if ask == "report":
            with pytest.raises(StrategyError, match="be numbers"):
                session.report()
    finally:
        if ask == "report":
            session.__exit__(None, None, None)
        else:
            with pytest.raises(StrategyError, match="be numbers"):
                session.__exit__(None, None, None)
    model(**inputs)  # the model is as before all the same


def test_an_error_inside_is_not_hidden_by_it() -> None:
    model = _model(side=4)
    inputs: dict[str, Any] = prompt(model, [3, "image", 5])

    def fail() -> None:
        with trim(model, Normalised()):
            model(**inputs)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()


@pytest.mark.parametrize(
    ("name", "padded"),
    [("fastv-query=all", False), *((name, True) for name in ("fastv-query=last", "fastv-query=all", "pvtp", "st3"))],
)
def test_padding_does_not_hide_activations_that_are_no_numbers(name: str, padded: bool) -> None:
    """As a float16 model makes them: one picture of a batch, beside a row that is longer or not."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [3, "image", 9 if padded else 5])
    inputs["pixel_values"][0] = float("inf")
    with trim(model, SPECS[name]), pytest.raises(StrategyError, match="be numbers"):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
