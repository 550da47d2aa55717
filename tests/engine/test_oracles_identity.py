"""Keeping everything is doing nothing, bit for bit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from tests.engine.cases import annotate, common, generate, trimmed
from tests.models import prompt, tiny_llava
from tokentrim.plugins.loader import registry

_EVERYTHING = {
    "keep_ratio": 1.0, "prune_ratio": 0.0, "floor": 1.0, "read_ratio": 1.0, "cost": 1.0, "late_ratio": 1.0,
    "flops_cut": 0.0,
}  # fmt: skip
"""The value of each budget parameter at which nothing goes."""


def _keep_all() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"none": {"name": "none"}}
    strategies = registry("strategy")
    for entry in strategies:
        fields = strategies.get(entry.name).model_fields
        values = {key: value for key, value in _EVERYTHING.items() if key in fields}
        if values:
            found[entry.name] = {"name": entry.name, **common(fields), **values}
    found["fastv-all"] = {**found["fastv"], "query": "all"}
    found["pvtp-text"] = {**found["pvtp"], "query": "text"}
    found["random-at-3"] = {**found["random"], "boundary": 3}
    found["vta-frozen"] = {**found["vta"], "ranking": "frozen", "every": 3}
    found["keep-count-beyond"] = {"name": "uniform", "keep_count": 10**6, "boundary": 2}
    found["renumbered"] = {**found["fastv"], "positions": "renumber"}
    found["composed"] = {"spatial": [found["random"], found["fastv"]], "temporal": found["vta"]}
    return found


KEEP_ALL = _keep_all()
_OWN = [name for name in KEEP_ALL if name not in registry("strategy") or name == "none"]
"""Those that the contract, which asks the same of every strategy under sdpa, does not know."""

_model = lru_cache(maxsize=8)(tiny_llava)


_LAYOUTS: tuple[tuple[list[int | str], ...], ...] = (
    ([3, "image", 5],),
    ([3, "image", 5], [2, "image", 4, "image", 9], [7]),
)


@lru_cache(maxsize=4)
def _untouched(attention: str, number: int) -> tuple[torch.Tensor, ...]:
    """(logits of a forward, the same without a cache, new tokens, their logits) of the model without any strategy."""
    model = _model(side=4, attention=attention)
    inputs = prompt(model, *_LAYOUTS[number])
    with torch.no_grad():
        expected = model(**inputs).logits
        uncached = model(**inputs, use_cache=False).logits
    return expected, uncached, *generate(model, inputs, 6)


@pytest.mark.parametrize(
    ("name", "attention"), [*((name, "eager") for name in KEEP_ALL), *((name, "sdpa") for name in _OWN)]
)
def test_keeping_everything_changes_no_bit(name: str, attention: str) -> None:
    model = _model(side=4, attention=attention)
    for number, layouts in enumerate(_LAYOUTS):
        inputs = prompt(model, *layouts)
        expected, uncached, ids, logits = _untouched(attention, number)
        with trimmed(model, KEEP_ALL[name], inputs) as session, torch.no_grad():
            found = model(**inputs).logits
            if session.strategy.temporal_part is None:
                annotate(session, inputs)
                assert torch.equal(model(**inputs, use_cache=False).logits, uncached)
            annotate(session, inputs)
            kept_ids, kept_logits = generate(model, inputs, 6)
            n_visual = session.trace.n_visual
            assert all(len(session.trace.cached(5, 5, row)) == n for row, n in enumerate(n_visual))
        assert torch.equal(found, expected)
        assert torch.equal(kept_ids, ids)
        assert torch.equal(kept_logits, logits)


def test_the_wrapper_hands_a_padded_row_its_mask() -> None:
    """An attention name without a mask function would get no mask at all."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [20, "image", 5])
    expected = generate(model, inputs, 3)[1]
    with trimmed(model, {**KEEP_ALL["fastv"], "k": 1}, inputs):
        assert torch.equal(generate(model, inputs, 3)[1], expected)
