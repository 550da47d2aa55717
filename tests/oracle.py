"""What every family must do: a batch of ragged rows, each as alone, and alone like the untouched model with masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import deviation, generate, merges, with_weights
from tests.families import Family, Layout
from tests.masked import masked_logits
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import Need
from tokentrim.counting.forecast import is_static, planned_layer_tokens
from tokentrim.errors import StrategyError, UnsupportedError
from tokentrim.session import Session, adapter_of, trim

TOLERANCE = 1e-4


def trimmed(family: Family, model: Any, spec: Any, inputs: dict[str, Any], **options: Any) -> Session:
    session = trim(model, with_weights(model, spec), **options)
    if Need.EVIDENCE in session.strategy.needed():
        visual = family.visual(model, inputs)
        told = [(int(ids[~here].sum()), int(here.sum())) for ids, here in zip(inputs["input_ids"], visual, strict=True)]
        session.annotate(evidence=[torch.rand(n, generator=torch.Generator().manual_seed(s)) for s, n in told])
    return session


def beams(model: Any, inputs: dict[str, Any]) -> Tensor:
    found = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
    return found[:, inputs["input_ids"].shape[1] :]


def check_beams(family: Family, spec: Any, layouts: Sequence[Layout]) -> None:
    """The beams of a batch are those of each row alone, and those of the untouched model where nothing is pruned."""
    model = family.model()
    inputs = family.prompt(model, *layouts)
    plain = beams(model, inputs) if spec == "none" else None
    with trim(model, spec):
        found = beams(model, inputs)
        rows = [beams(model, family.alone(model, layouts, row))[0] for row in range(len(layouts))]
    assert found.tolist() == [row.tolist() for row in rows]
    assert plain is None or torch.equal(found, plain)


def check(family: Family, model: Any, spec: Any, steps: int = 5) -> None:
    """Every row of a ragged, padded batch answers like the untouched model with masks (merging: like the row alone)."""
    inputs = family.prompt(model, *family.ragged)
    if Need.TOWER_GROUPS in strategy_from(spec).strategy.needed() & adapter_of(model).locate(model).unserved.keys():
        pytest.skip("merges in towers of another make")
    with trimmed(family, model, spec, inputs) as session:
        try:
            ids, logits = generate(model, inputs, steps)
        except StrategyError as error:
            if "serves models whose pictures" not in str(error):
                raise
            pytest.skip(f"refused by name: {error}")
        except UnsupportedError as error:
            if "pooled or resized" not in str(error):
                raise
            pytest.skip(f"refused by name: {error}")
        trace, strategy, shape = session.trace, session.strategy, session.layout.shape
    visual = family.visual(model, inputs)
    assert trace.n_visual == tuple(int(n) for n in visual.sum(1))
    for row, n in enumerate(trace.n_visual):
        counts = [len(trace.kept(layer, row)) for layer in range(shape.n_layers)]
        planned = planned_layer_tokens(strategy.spatial_parts, shape, n)
        assert all(a == b if is_static(strategy) else a <= b for a, b in zip(counts, planned, strict=True))
        kept = [set(trace.kept(layer, row).tolist()) for layer in range(shape.n_layers)]
        assert all(later <= earlier for earlier, later in pairwise(kept))
        single = family.alone(model, family.ragged, row)
        if merges(strategy):
            with trimmed(family, model, spec, single):
                own_ids, own = generate(model, single, steps)
            assert ids[row].tolist() == own_ids[0].tolist()
            assert deviation(logits[row], own[0]) < TOLERANCE
            continue
        here = family.visual(model, single)[0]
        expected = masked_logits(model, single, ids[row, :-1], trace, visual=here, sample=row)[len(here) - 1 :]
        assert deviation(logits[row], expected) < TOLERANCE
