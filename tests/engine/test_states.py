"""What a part remembers belongs to its place in the strategy, whichever object stands there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models import prompt, tiny_llava
from tokentrim.contracts.compose import compose
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import LayerSite
from tokentrim.contracts.strategy import SpatialSelector
from tokentrim.counting.schedule import Schedule
from tokentrim.engine.tokens.prompt import TEMPORAL
from tokentrim.errors import EngineError
from tokentrim.session import trim

BEGUN: list[list[int]] = []


class Remembering(SpatialSelector):
    """Halves the tokens, whatever their number, and remembers how many there were."""

    name = "remembering"
    count_is_static = False

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({1: n_visual, 2: n_visual})

    def begin(self, prompt: PromptInfo) -> list[int]:
        BEGUN.append([])
        return BEGUN[-1]

    def select(self, site: LayerSite, count: torch.Tensor) -> Selection:
        site.state.append(site.n_visual[0])
        return top_selection(-site.ids.float(), tuple(n // 2 for n in site.n_visual), site.n_visual)


ONE = Remembering()


@pytest.mark.parametrize("other", [ONE, Remembering()], ids=["the same object", "an equal one"])
def test_a_part_that_stands_twice_remembers_twice(other: Remembering) -> None:
    model = tiny_llava(side=4)
    BEGUN.clear()
    with trim(model, compose((ONE, other))), torch.no_grad():
        model(**prompt(model, [3, "image", 5]))
    assert BEGUN == [[16, 4], [8, 2]]


def test_asking_for_a_state_that_is_not_there_is_an_error() -> None:
    model = tiny_llava(side=4)
    with trim(model, ONE) as session, torch.no_grad():
        model(**prompt(model, [3, "image", 5]))
        with pytest.raises(EngineError, match="the state of a part must be that of one of"):
            session._latest.state_of(TEMPORAL)  # type: ignore[union-attr]
