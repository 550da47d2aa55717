"""From a configuration to its cells: every method at every budget, on every task of every model, with its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokentrim.compare.config import CompareConfig, MethodSpec
from tokentrim.config.specs import StrategySpec, resolve, strategy_from
from tokentrim.contracts.fits import prepare
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import TEXT_ONLY, Cell, ModelTarget, first_boundary
from tokentrim.runs.specs import MEASURED, Match, TaskSpec, Timing

if TYPE_CHECKING:
    from tokentrim.runs.results import CellResult


def expand(config: CompareConfig, models: list[ModelTarget]) -> list[Cell]:
    """All cells, in the order in which they run: by model, then task, the unpruned run first."""
    cells: list[Cell] = []
    for model in models:
        variants = list(_variants(config, model))
        for task in config.tasks:
            cells += [_cell(config, model, task, variant) for variant in variants]
    return cells


def _cell(config: CompareConfig, model: ModelTarget, task: TaskSpec, variant: Variant) -> Cell:
    """One variant on one task."""
    limit = task.max_new_tokens or config.max_new_tokens or registry("task").get(task.task).max_new_tokens
    split, n = task.asked(config.split, config.samples)
    return Cell(
        model, task, n, split, variant.method, variant.strategy, variant.match,
        limit, config.batch_size, variant.budget, variant.seed, variant.boundary, config.pictures, variant.control,
        timing=(config.timing or Timing()) if variant.match == MEASURED else None,
    )  # fmt: skip


class Variant(NamedTuple):
    """One row of one model, whatever the task."""

    method: str
    strategy: StrategySpec
    match: Match
    budget: float | None = None
    seed: int | None = None
    boundary: int | None = None
    control: str | None = None


def _variants(config: CompareConfig, model: ModelTarget) -> Iterator[Variant]:
    """Every row of one model that is known before anything has run."""
    boundaries: set[int] = set()
    methods = config.methods
    for method in methods:
        match: Match = matched_by(method, config)
        budgets: Sequence[float | None] = [None] if match == "fixed" else method.budgets or config.budgets.values
        for seed, strategy in _seeded(method, config.seeds):
            # What does not fit the model, or lacks its weights, is noticed before anything runs.
            first_boundary(strategy.strategy, model.shape)
            prepare(strategy.strategy, model.shape)
            for budget in budgets:
                boundary = _expected_boundary(strategy, model.shape, match, budget)
                if boundary is not None and method.name != TEXT_ONLY:
                    boundaries.add(boundary)
                yield Variant(method.name, strategy, match, budget, seed, boundary, method.control)
    if config.text_only and all(method.name != TEXT_ONLY for method in methods):
        yield from (text_only(boundary) for boundary in sorted(boundaries))


def text_only(boundary: int) -> Variant:
    """The row without any visual token from ``boundary`` on."""
    return Variant(TEXT_ONLY, strategy_from({"name": TEXT_ONLY, "k": boundary}), "fixed", boundary=boundary)


def further_text_only(config: CompareConfig, cells: Sequence[Cell], finished: Mapping[str, CellResult]) -> list[Cell]:
    """Text-only cells that only the finished cells ask for: where a method began to drop was not to be foreseen.

    Args:
        config: the comparison.
        cells: its cells.
        finished: their results by key.
    """
    if not config.text_only or any(method.name == TEXT_ONLY for method in config.methods):
        return []
    there = {(cell.model.name, cell.task.task, cell.boundary) for cell in cells if cell.method == TEXT_ONLY}
    wanted = {
        (cell.model.name, cell.task.task, boundary): cell
        for cell in cells
        if cell.key in finished and (boundary := finished[cell.key].head.get("boundary")) is not None
    }
    missing = sorted(wanted.keys() - there)
    return [_cell(config, wanted[place].model, wanted[place].task, text_only(place[2])) for place in missing]


def _expected_boundary(spec: StrategySpec, shape: ModelShape, match: Match, budget: float | None) -> int | None:
    """The first boundary at which a method will drop tokens, by its plan for the model's usual picture.

    None as well where only running it can tell: a knob that is solved by measuring, counts that depend on the data.
    """
    if match == MEASURED:
        return None
    ratios: dict[str, Any] = {} if budget is None else {match: budget}
    n_visual = shape.vision.n_visual if shape.vision else 1
    try:
        strategy = spec.strategy.at_budget(shape, n_visual, **ratios)[0] if ratios else resolve(spec, shape, n_visual)
    except StrategyError:  # out of reach: its cells will say so
        return None
    return first_boundary(strategy, shape, n_visual)


def matched_by(method: MethodSpec, config: CompareConfig) -> Match:
    """Which share a method's budgets mean.

    A method without a knob, or with a budget of its own, runs as it is configured; one that acts on the cache alone
    has the same layer-mean tokens whatever it does, so its budgets are shares of the cache; of what is seen of it,
    where nothing leaves.
    """
    if method.match is not None:
        return method.match
    if method.control is not None:
        return config.budgets.match
    if method.as_configured:
        return "fixed"
    strategy = method.chosen.strategy
    if strategy.spatial_parts or strategy.temporal_part is None:
        return config.budgets.match
    return "kv_ratio" if strategy.temporal_part.evicts() else "kv_read_ratio"


def _seeded(method: MethodSpec, seeds: tuple[int, ...]) -> Iterator[tuple[int | None, StrategySpec]]:
    """A method once per seed, where it has one to set and does not set it."""
    spec = method.chosen
    fields = type(spec.strategy).model_fields
    if "seed" not in fields or "seed" in spec.strategy.model_fields_set:
        yield None, spec
        return
    for seed in seeds:
        yield seed, strategy_from({**spec.as_dict(), "seed": seed})
