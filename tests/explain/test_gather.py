"""Explanations hold what really decided, over every registered strategy."""

from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.engine.cases import SPECS, with_weights
from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    Schedule,
    Selection,
    SpatialScorer,
    StepSite,
    TemporalSelector,
    top_selection,
)
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.strategy import SpatialScorer as Scorer, TemporalScorer
from tokentrim.engine.recording import recording
from tokentrim.explain import explain
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import evidence_of, make_batch, model_inputs
from tokentrim.session import trim

# One configuration of each strategy, and every temporal one: entries may leave in an order that was fixed once.
FIRST = {
    **{spec.get("name", name): spec for name, spec in reversed(SPECS.items())},
    **{name: spec for name, spec in SPECS.items() if spec.get("name") in ("vta", "st3")},
}


@pytest.fixture(scope="module")
def loaded():
    return load_model("testbed-plain")


@pytest.fixture(scope="module")
def question(loaded):
    task = registry("task").get("list-all")
    batch = make_batch(loaded, task.samples("test", 1), [0])
    return model_inputs(loaded, batch), evidence_of(task, batch)


@pytest.fixture(scope="module")
def explained(loaded, question):
    """(strategy, its explanation) of a configuration by its name, made once."""
    inputs, evidence = question

    @cache
    def made(name):
        strategy = strategy_from(with_weights(loaded.model, FIRST[name])).strategy
        wanted = evidence if Need.EVIDENCE in strategy.needed() else None
        return strategy, explain(loaded, strategy, inputs, max_new_tokens=6, evidence=wanted)

    return made


def highest(tokens, scores, count):
    """The ``count`` best tokens, by a sort of our own; equal scores go to the lower number."""
    return sorted(sorted(tokens, key=lambda token: (-scores[tokens.index(token)], token))[:count])


@pytest.mark.parametrize("name", FIRST)
def test_every_decision_is_recorded_and_agrees_with_the_trace(name, explained):
    strategy, found = explained(name)
    alive = list(range(found.n_visual))
    for stage in found.stages:
        assert list(stage.tokens) == alive
        assert set(stage.kept) <= set(stage.tokens)
        alive = list(stage.kept)
        if stage.into is not None:
            assert set(stage.into.values()) <= set(stage.kept)
            assert all(stage.into.get(token, token) == token for token in stage.kept)
    assert found.held[0][-1] == len(alive)
    assert bool(found.evictions) == (strategy.temporal_part is not None)
    assert len(found.held) == len(found.words)
    assert all(0 <= share <= 1 for share in found.life)


@pytest.mark.parametrize("name", FIRST)
def test_scores_are_those_that_ranked(name, explained):
    strategy, found = explained(name)
    scorers = [isinstance(part, Scorer) for part in strategy.spatial_parts]
    if scorers and all(scorers):
        for stage in found.stages:
            assert highest(stage.tokens, stage.scores, len(stage.kept)) == list(stage.kept)
    if isinstance(strategy.temporal_part, TemporalScorer):
        gone = sum(len(one.tokens) - len(one.kept) for one in found.evictions)
        left = sum(sum(found.held[0]) - sum(now) for now in found.held)  # what is hidden may return, and is chosen anew
        assert gone == (sum(found.held[0]) - sum(found.held[-1]) if strategy.temporal_part.evicts() else left)
        for one in found.evictions:
            assert highest(one.tokens, one.scores, len(one.kept)) == list(one.kept)


class Known(SpatialScorer):
    """Scores that a test can foretell."""

    name: ClassVar[str] = "known"

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        return Schedule.of({1: n_visual // 2, 3: n_visual // 4})

    def score(self, site: LayerSite) -> Tensor:
        return (site.ids * 7 % 31).float() + site.boundary


def test_scores_are_the_very_numbers(loaded, question):
    found = explain(loaded, Known(), question[0], max_new_tokens=2)
    assert [stage.boundary for stage in found.stages] == [1, 3]
    for stage in found.stages:
        assert stage.scores == tuple(float(token * 7 % 31 + stage.boundary) for token in stage.tokens)


def test_selectors_may_show_what_they_rank_by(explained):
    _, found = explained("vispruner")
    (stage,) = found.stages
    best = highest(stage.tokens, stage.scores, len(stage.kept) // 2)
    assert set(best) <= set(stage.kept)
    assert "unlike each other" in stage.about


class Oldest(TemporalSelector):
    """Lets the highest raster numbers go, and says so."""

    name: ClassVar[str] = "test-oldest"

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        return n_prefill - step

    def select(self, site: StepSite, count: Tensor) -> Selection:
        site.note(-site.ids.float(), "raster order")
        return top_selection(-site.ids.float(), tuple(count.tolist()), site.n_visual)


def test_temporal_selectors_may_too(loaded, question):
    with trim(loaded.model, Oldest()), recording() as records, torch.inference_mode():
        loaded.model.generate(**question[0], max_new_tokens=3, do_sample=False)
    assert records
    for record in records:
        assert record.about == "raster order"
        assert torch.equal(record.scores, -record.ids.float())


def test_threshold_is_given_only_where_it_parts():
    from tokentrim.explain import DecidedStage

    stage = DecidedStage("s", (0, 1, 2), (3.0, 1.0, 2.0), (0, 2), 0, (), "", None, False)
    assert stage.threshold == 2.0
    assert replace(stage, kept=(0, 1)).threshold is None
    assert replace(stage, kept=(0, 1, 2)).threshold is None
    assert replace(stage, scores=None).threshold is None


def test_nothing_is_recorded_unasked(loaded, question):
    with trim(loaded.model, Known()), recording() as records, torch.inference_mode():
        loaded.model.generate(**question[0], max_new_tokens=1, do_sample=False)
    assert len(records) == 2
    with trim(loaded.model, Known()), torch.inference_mode():
        loaded.model.generate(**question[0], max_new_tokens=1, do_sample=False)
    assert len(records) == 2
