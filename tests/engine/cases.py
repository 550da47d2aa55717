"""Every registered strategy, each with a small configuration that really prunes, and how to run it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from tests.models import IMAGE
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.sites import FROM_LAYERS, FROM_PROMPT, FROM_TOWER, Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.plugins.loader import registry
from tokentrim.selftest.subject import deviation as deviation
from tokentrim.session import Session, adapter_of, trim
from tokentrim.testing import supplies

# Parameters that many strategies share, made small: tiny models have few layers, and tests few steps.
_COMMON: dict[str, Any] = {
    "keep_ratio": 0.4,
    "k": 2,
    "start": 1,
    "stride": 2,
    "prune_ratio": 0.3,
    "horizon": 12,
    "blocks": 2,
}

# Further configurations of some strategies. A registered strategy without an entry runs with the common values.
_MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "random": ({"boundary": 0}, {"boundary": 2, "seed": 7}),
    "uniform": ({"boundary": 0}, {"boundary": 3}),
    "oracle": ({"boundary": 1},),
    "fastv": ({"query": "last"}, {"query": "all"}, {"keep_ratio": None, "keep_count": 1}),
    "pvtp": ({}, {"query": "text"}, {"rule": "linear"}, {"stride": 1, "heredity": 3}),
    "layer-counts": ({}, {"rates": {1: 0.7, 2: 0.4, 4: 0.1}, "query": "last"}, {"counts": {2: 9, 3: 4}}),
    "vta": (
        {},
        {"every": 5},
        {"ranking": "frozen"},
        {"ranking": "frozen", "every": 5, "floor": 0.1},
        {"attenuation": "linear", "horizon": 5},
        {"attenuation": "exponential"},
        {"ranking": "previous"},
        {"ranking": "current"},
        {"evict": False},
        {"evict": False, "ranking": "frozen", "every": 3},
    ),
    "st3": (
        {},
        {"evict": True},
        {"evict": True, "ranking": "frozen", "every": 5},
        {"evict": True, "ranking": "block"},
        {"ranking": "previous"},
        {"ranking": "accumulated"},
    ),
    "tally": ({"first": 0.6}, {"votes": "latest", "words": "last", "boundaries": (2, 4)}),
    "scope": ({}, {"combined": "add", "alpha": 0.5}),
    "mmtok": ({}, {"alpha": 2.0, "picture": [640, 320]}),
    "text-only": ({}, {"k": 0}),
    "vscan": (
        {},
        {"windows": "capped", "row": "plain"},
        {"total": "released", "row": "before", "boundaries": (1, 4), "late_ratio": 0.7},
    ),
    "hiprune": ({"alpha": 0.6}, {"alpha": 0.6, "borders": "clipped"}),
    "hired": ({}, {"total": "released", "alpha": 0.3}),
    "prumerge": ({}, {"plus": True}, {"keep_ratio": None, "plus": True, "reduce": "mean"}),
    "visionzip": ({"contextual": 0.4}, {"contextual": 0.4, "reduce": "mean"}),
    "quecc": ({"tokens": 4},),
    "fitprune": ({}, {"counts": {2: 9, 3: 4}}),
    "pyramiddrop": ({}, {"row": "before", "boundaries": (2, 4)}),
    "scissor": ({"tau": 0.1},),
    "lookm": ({}, {"merge": "weighted"}),
    "framefusion": ({}, {"cost": 0.6, "latest": 1}),
    "prunevid": ({"layer": 2},),
    "dycoke": ({}, {"version": "code", "layer": 1}),
    "sparsevlm": ({}, {"version": "plus"}, {"version": "paper", "scale": 0.7}, {"version": "v1.0", "scale": 2.0}),
}

COMPOSITION: dict[str, Any] = {
    "spatial": [
        {"name": "random", "keep_ratio": 0.6, "boundary": 0},
        {"name": "fastv", "keep_ratio": 0.4, "k": 2},
    ],
    "temporal": {"name": "vta", "horizon": 12},
}


def common(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The small values of those shared parameters that a strategy has."""
    return {key: value for key, value in _COMMON.items() if key in fields}


def specs(positions: str = "keep") -> dict[str, dict[str, Any]]:
    """Readable id -> specification, over the live registry; ``replay`` is left to tests of its own."""
    found: dict[str, dict[str, Any]] = {}
    strategies = registry("strategy")
    for entry in strategies:
        if entry.name == "replay":
            continue
        fields = strategies.get(entry.name).model_fields
        for more in _MORE.get(entry.name, ({},)):
            spec = {"name": entry.name, **common(fields), **more}
            if spec.get("keep_count") is not None:
                spec.pop("keep_ratio")
            if positions == "renumber":
                if "positions" not in fields:
                    continue
                spec["positions"] = "renumber"
            found["-".join([entry.name, *(f"{key}={value}" for key, value in more.items())])] = spec
    if positions == "renumber":
        parts = [{**part, "positions": "renumber"} for part in COMPOSITION["spatial"]]
        found["composition"] = {**COMPOSITION, "spatial": parts}
    else:
        found["composition"] = COMPOSITION
    return found


SPECS = specs()
RENUMBERED = specs("renumber")
_NAMED = {strategy_from(spec).strategy.name: name for name, spec in reversed(SPECS.items())}
FIRST = sorted({*_NAMED.values(), "fastv-query=all"}, key=list(SPECS).index)
"""One configuration of each registered strategy, the composition, and fastv with the other way of reading attention."""
OTHERS = [name for name in SPECS if name not in FIRST]


def dealt(names: Iterable[str], choices: Sequence[Any]) -> list[tuple[str, Any]]:
    """Every name with one of the choices, which take turns: where a full product would say the same thing again."""
    return list(zip(names, cycle(choices)))


def evidence_for(inputs: dict[str, Tensor]) -> list[Tensor]:
    """Made-up relevance of every visual token, a function of the row's text alone."""
    found: list[Tensor] = []
    for ids in inputs["input_ids"]:
        text = ids[(ids != IMAGE) & (ids != 0)]
        generator = torch.Generator().manual_seed(int(text.sum()))
        found.append(torch.rand(int((ids == IMAGE).sum()), generator=generator))
    return found


@contextmanager
def trimmed(model: Any, spec: Any, inputs: dict[str, Tensor]) -> Generator[Session]:
    """``trim`` with evidence and weights supplied where a strategy needs them."""
    with trim(model, with_weights(model, spec)) as session:
        annotate(session, inputs)
        yield session


def with_weights(model: Any, spec: Any) -> Any:
    """``spec``, with random weights for this model where it is a trainable strategy without any."""
    strategy = strategy_from(spec).strategy
    filled = supplies.with_weights(strategy, adapter_of(model).locate(model).shape)
    return spec if filled is strategy else filled


def annotate(session: Session, inputs: dict[str, Tensor]) -> None:
    """Supply evidence for the next prompt, if the strategy asks for it."""
    if Need.EVIDENCE in session.strategy.needed():
        session.annotate(evidence=evidence_for(inputs))


def merges(strategy: Strategy) -> bool:
    """Whether masks alone cannot express it: tokens merge, or attention itself is edited."""
    return any(part.merges for part in strategy.parts().deciders) or strategy.attention_part is not None


def _attends(name: str) -> tuple[Any, ...]:
    """All that a strategy has to do with how attention is computed: what it reads or edits, and where it acts."""
    strategy = strategy_from(SPECS[name]).strategy
    read = strategy.needed() & (FROM_LAYERS | FROM_PROMPT | FROM_TOWER | {Need.GUIDE, Need.TOWER_GROUPS})
    temporal, edits = strategy.temporal_part, strategy.attention_part is not None
    return read, temporal and temporal.evicts(), edits, merges(strategy), strategy.stage


_WAYS = {_attends(name): name for name in reversed([*FIRST, *OTHERS])}
ATTENDING = [name for name in FIRST if name in _WAYS.values()]
"""Of FIRST, one for each way to read or edit attention: another implementation of it is the same to the rest."""
ATTENDING_OTHERWISE = [name for name in OTHERS if name in _WAYS.values()]
"""Of OTHERS, one for each way that FIRST has not."""

_CUTTING = ("random-boundary=0", "fastv-query=all", "pvtp", "st3", "composition")
ANEW = [
    name
    for name in FIRST
    if name in RENUMBERED and (name in _CUTTING or merges(strategy_from(RENUMBERED[name]).strategy))
]
"""What to try under new positions where the contract has asked every strategy: one cut, several, and what merges."""


def generate(model: Any, inputs: dict[str, Tensor], new_tokens: int, **options: Any) -> tuple[Tensor, Tensor]:
    """(new ids [B, n], their logits [B, n, V]) of a greedy generation."""
    options = {"do_sample": False, **options}
    out = model.generate(
        **inputs, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True, **options
    )
    length = inputs["input_ids"].shape[1]
    return out.sequences[:, length:], torch.stack(out.logits, dim=1)
