"""Dropping tokens gives what masking them gives, in every layer and at every decode step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from tests.engine.cases import ANEW, ATTENDING, FIRST, RENUMBERED, SPECS, dealt, deviation, generate, merges, trimmed
from tests.engine.reference import embeddings, reference_logits
from tests.models import prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import LayerSite
from tokentrim.contracts.strategy import SpatialSelector
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import DataError

TOLERANCE = 1e-4
"""In units of the largest logit."""

_model = lru_cache(maxsize=8)(tiny_llava)
_KEEPING = [name for name, spec in SPECS.items() if not merges(strategy_from(spec).strategy)]
_RENUMBERING = [
    name
    for name, spec in RENUMBERED.items()
    if not merges(strategy_from(spec).strategy) and (name in ANEW or name not in FIRST)
]
"""Each strategy's usual configuration is held by the contract: tests/testing/test_contract.py."""


def _check(model: Any, spec: Any, layout: list[int | str], steps: int, *, renumber: bool = False) -> None:
    inputs = prompt(model, layout)
    with trimmed(model, spec, inputs) as session:
        ids, logits = generate(model, inputs, steps)
    length = inputs["input_ids"].shape[1]
    expected = reference_logits(model, inputs, ids[0, :-1], session.trace, renumber=renumber)[length - 1 :]
    assert deviation(logits[0], expected) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in _KEEPING if name in ATTENDING or name not in FIRST])
def test_dropping_is_masking(name: str) -> None:
    """Cached generation equals one uncached pass over the whole sequence with the same kept sets."""
    _check(_model(), SPECS[name], [3, "image", 5], 12)


@pytest.mark.parametrize("name", [name for name in _KEEPING if name in FIRST])
def test_dropping_is_masking_with_eager_attention(name: str) -> None:
    _check(_model(attention="eager"), SPECS[name], [3, "image", 5], 5)


@pytest.mark.parametrize("name", _RENUMBERING)
def test_dropping_is_masking_with_renumbered_positions(name: str) -> None:
    _check(_model(), RENUMBERED[name], [3, "image", 5], 12, renumber=True)


_BACKBONES = [("llama", "clip", 4), ("llama", "siglip", 1), ("mistral", "siglip", 2), ("qwen2", "clip", 2)]


@pytest.mark.parametrize(
    ("name", "backbone"),
    [*(("st3", backbone) for backbone in _BACKBONES),
     *dealt(["fastv-query=all", "random-boundary=0", "composition", "fastv-query=last"], _BACKBONES)],
)  # fmt: skip
def test_dropping_is_masking_on_every_backbone(name: str, backbone: tuple[Any, Any, int]) -> None:
    body, tower, kv_heads = backbone
    model = _model(body, tower, kv_heads=kv_heads, side=4)
    _check(model, SPECS[name], [2, "image", 3, "image", 4], 8)
    if name in RENUMBERED:
        _check(model, RENUMBERED[name], ["image", 2, "image", 1], 8, renumber=True)


@pytest.mark.parametrize(
    ("name", "layout"),
    dealt(
        ["st3", "fastv-query=last", "text-only-k=0", "pvtp-query=text", "st3", "fastv-query=last"],
        [["image", 1], ["image", "image", 2], [4, "image", "image", 1], ["image", 1], ["image", "image", 2]],
    ),
)
def test_images_may_stand_anywhere_before_the_last_token(name: str, layout: list[int | str]) -> None:
    _check(_model(side=4), SPECS[name], layout, 4)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_prompt_that_ends_in_an_image_is_refused_where_its_end_could_be_dropped(padding: Any) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 9], [1, "image"], padding=padding)
    with trimmed(model, SPECS["fastv-query=last"], inputs), pytest.raises(DataError, match="row 1 .* be text"):
        model(**inputs)
    with torch.no_grad(), trimmed(model, {"name": "fastv", "keep_ratio": 1.0}, inputs):
        model(**inputs)
    _check(model, SPECS["vta"], [1, "image"], 4)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16])
@pytest.mark.parametrize("boundary", [0, 1, 2, 3, 5])
def test_dropping_is_masking_at_every_boundary_and_count(boundary: int, count: int) -> None:
    model = _model(side=4)
    _check(model, {"name": "random", "keep_count": count, "boundary": boundary}, [3, "image", 2], 3)
    if boundary:
        _check(model, {"name": "fastv", "keep_count": count, "k": boundary}, [3, "image", 2], 3)


@pytest.mark.parametrize("name", _KEEPING)
def test_a_direct_forward_gives_every_column_its_logits(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5, "image", 2])
    temporal = strategy_from(SPECS[name]).strategy.temporal_part is not None
    ones = torch.ones_like(inputs["input_ids"])
    for options in ({}, {"use_cache": True, "attention_mask": ones}, *([] if temporal else [{"use_cache": False}])):
        with trimmed(model, SPECS[name], inputs) as session, torch.no_grad():
            found = model(**inputs, **options).logits[0]
        expected = reference_logits(model, inputs, torch.tensor([], dtype=torch.long), session.trace)
        text = inputs["input_ids"][0] != model.config.image_token_id
        last = len(model.model.language_model.layers) - 1
        alive = text.clone()
        alive[torch.nonzero(~text)[session.trace.kept(last), 0]] = True
        assert deviation(found[alive], expected[alive]) < TOLERANCE
        assert bool((found[~alive] == 0).all())


class _Pairs(SpatialSelector):
    """Merges every second token into the one before it, with weights 3 and 1, before layer ``at``."""

    name = "pairs"
    merges = True
    at: int = 0

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({self.at: n_visual // 2})

    def select(self, site: LayerSite, count: torch.Tensor) -> Selection:
        rows, n = site.ids.shape
        kept = torch.arange(0, n, 2).expand(rows, -1)
        target = (torch.arange(n) // 2).expand(rows, -1)
        weight = torch.where(torch.arange(n) % 2 == 0, 3.0, 1.0).expand(rows, -1)
        return Selection(kept, tuple(int(c) for c in count), target, weight)


@pytest.mark.parametrize("boundary", [0, 1, 3, 5])
def test_merging_is_averaging_and_masking(boundary: int) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])

    def average(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        for first in range(3, 3 + 16, 2):
            hidden[first] = (3 * hidden[first] + hidden[first + 1]) / 4
        return hidden

    with trimmed(model, _Pairs(at=boundary), inputs) as session:
        ids, logits = generate(model, inputs, 5)
    trace, length = session.trace, inputs["input_ids"].shape[1]
    assert trace.kept(5).tolist() == list(range(0, 16, 2))
    expected = reference_logits(model, inputs, ids[0, :-1], trace, change={boundary: average})[length - 1 :]
    assert deviation(logits[0], expected) < TOLERANCE


def test_pooling_is_averaging_the_cells_of_the_grid() -> None:
    model = _model()  # 8 x 8 tokens into 5 x 5 cells
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS["pool"], inputs) as session:
        ids, logits = generate(model, inputs, 5)
    trace, length = session.trace, inputs["input_ids"].shape[1]
    cell = {token: (token // 8 * 5 // 8, token % 8 * 5 // 8) for token in range(64)}
    assert sorted(cell[token] for token in trace.kept(0).tolist()) == [(r, c) for r in range(5) for c in range(5)]

    def average(hidden: torch.Tensor) -> torch.Tensor:
        after = hidden.clone()
        for kept in trace.kept(0).tolist():
            members = [token for token in range(64) if cell[token] == cell[kept]]
            after[3 + kept] = torch.stack([hidden[3 + token] for token in members]).mean(0)
        return after

    expected = reference_logits(model, inputs, ids[0, :-1], trace, change={0: average})[length - 1 :]
    assert deviation(logits[0], expected) < TOLERANCE


def test_the_reference_would_notice() -> None:
    """The comparison has teeth: one visual token more or less moves the logits by far more than the tolerance."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    nothing = torch.tensor([], dtype=torch.long)
    with trimmed(model, {"name": "uniform", "keep_count": 8, "boundary": 4}, inputs) as session, torch.no_grad():
        found = model(**inputs).logits[0]
    trace = session.trace
    right = reference_logits(model, inputs, nothing, trace)
    trace.prefill[1] = (4, trace.prefill[1][1][:, :-1])
    wrong = reference_logits(model, inputs, nothing, trace)
    assert deviation(found[-1], right[-1]) < TOLERANCE
    assert deviation(wrong[-1], right[-1]) > 50 * TOLERANCE
    with torch.no_grad():
        plain = model(**inputs).logits[0]
    assert embeddings(model, inputs).shape == (24, 64)
    assert deviation(plain, right) > 50 * TOLERANCE
