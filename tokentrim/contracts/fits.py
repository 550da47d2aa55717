"""What will be decided where, known before anything runs; and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokentrim.contracts.compose import require_one_policy
from tokentrim.contracts.extras import CacheMerger, TowerMerger
from tokentrim.contracts.sites import AT_BOUNDARIES, AT_STEPS, FROM_LAYERS, FROM_TOWER, Need
from tokentrim.contracts.strategy import Spatial, Strategy, TemporalScorer
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError, UnsupportedError, complaint

if TYPE_CHECKING:  # a layout is of a loaded model; a plan has none
    from tokentrim.contracts.adapter import Layout


@dataclass(frozen=True)
class Decision:
    """One spatial part acting at one boundary.

    Attributes:
        boundary: before this decoder layer.
        part: who decides.
        place: the part's number among the spatial ones.
        counts: keep_count of each row by the part's schedule (an upper bound where the count is data-dependent).
    """

    boundary: int
    part: Spatial
    place: int
    counts: tuple[int, ...]


def decisions(parts: Sequence[Spatial], shape: ModelShape, n_visual: Sequence[int]) -> list[Decision]:
    """All decisions of a prompt in the order in which they are taken: by boundary, then by declaration.

    Rows without visual tokens get count 0 everywhere and are never asked about.

    Raises:
        StrategyError: when a part's boundaries depend on the row or lie outside the model.
    """
    found: list[Decision] = []
    for place, part in enumerate(parts):
        schedules = {n: part.schedule(shape, n) for n in sorted(set(n_visual)) if n}
        boundaries = {schedule.boundaries for schedule in schedules.values()}
        if len(boundaries) > 1:
            raise StrategyError(
                complaint(
                    f"boundaries of {part.label()!r}",
                    "not depend on the number of visual tokens",
                    sorted(boundaries),
                    "return the same boundaries for every prompt",
                )
            )
        for boundary in next(iter(boundaries), ()):
            if boundary >= shape.n_layers:
                raise StrategyError(
                    complaint(
                        f"boundary of {part.label()!r}",
                        f"lie below the model's {shape.n_layers} layers",
                        boundary,
                        "boundaries are counted from 0: before decoder layer b",
                    )
                )
            counts = tuple(schedules[n].count_at(boundary) if n else 0 for n in n_visual)
            found.append(Decision(boundary, part, place, counts))
    return sorted(found, key=lambda decision: (decision.boundary, decision.place))


def check(strategy: Strategy, layout: Layout) -> None:
    """Refuse, before anything runs, a strategy that this model cannot serve; then let every part prepare.

    Args:
        strategy: what the user asked for.
        layout: what the adapter found in the model.

    Raises:
        UnsupportedError: names the missing ability.
        StrategyError: for parts that contradict each other or lie outside the model.
    """
    spatial, temporal = strategy.spatial_parts, strategy.temporal_part
    shape, vision_blocks = layout.shape, len(layout.vision_attentions)
    unserved = dict(layout.unserved)
    if layout.final_norm is None:
        kind = type(layout.language_model).__name__
        unserved[Need.FINAL_NORM] = f"{kind} has not one part, besides its layers, whose weights are vectors"
    _check_served(strategy, unserved)
    require_one_policy(spatial)
    _check_merging(spatial, layout)
    for decision in decisions(spatial, shape, (shape.usual_visual,)):
        _check_needs(decision.part.label(), decision.part.needed(), AT_BOUNDARIES, "at a boundary")
        early = decision.part.needed_at(decision.boundary) & FROM_LAYERS
        if decision.boundary == 0 and early:
            raise UnsupportedError(
                complaint(
                    f"{decision.part.label()!r}",
                    "act at boundary 1 or later: it reads a decoder layer beside it",
                    f"boundary 0 and needs {sorted(n.value for n in early)}",
                    "raise its boundary",
                )
            )
    for part in spatial:
        if FROM_TOWER & part.needed():
            for block in part.vision_blocks_of(layout.features_block, vision_blocks):
                if not -vision_blocks <= block < vision_blocks:
                    raise UnsupportedError(
                        complaint(
                            f"vision block of {part.label()!r}",
                            f"exist among the tower's {vision_blocks}",
                            block,
                            "choose another block, or a model whose vision tower the adapter can read",
                        )
                    )
    if temporal is not None:
        _check_needs(temporal.label(), temporal.needed(), AT_STEPS, "at a decode step")
        later = [layer for layer in range(shape.n_layers) if temporal.row_layer(layer, shape) > layer]
        if later:
            raise StrategyError(
                complaint(f"row_layer() of {temporal.label()!r}", "name the layer itself or an earlier one",
                          f"a later one for layers {later}", "a layer's row is there when the layer runs")
            )  # fmt: skip
        ranks_once = isinstance(temporal, TemporalScorer) and temporal.ranks_once()
        if isinstance(temporal, CacheMerger) and not (ranks_once and temporal.evicts()):
            raise UnsupportedError(
                complaint(f"{temporal.label()!r}, which merges cached entries,", "rank once, and evict", "not both",
                          "derive from TemporalScorer, and let ranks_once() be True")
            )  # fmt: skip
        if ranks_once and Need.LAST_ROW in temporal.needed():
            raise UnsupportedError(
                complaint(
                    f"{temporal.label()!r}, which ranks once,",
                    "not need what each step brings",
                    Need.LAST_ROW.value,
                    "read Need.PROMPT_ROW instead, or let ranks_once() be False",
                )
            )
    prepare(strategy, shape)


def prepare(strategy: Strategy, shape: ModelShape) -> None:
    """Let every part of a strategy load and check what it needs for a model, such as trained weights.

    Raises:
        TokentrimError: when a part has not what it needs.
    """
    for part in strategy.parts().deciders:
        part.prepare(shape)


def _check_merging(spatial: Sequence[Spatial], layout: Layout) -> None:
    """Refuse merging in a vision tower that cannot, and beside parts that read what is then not there."""
    mergers = [part for part in spatial if isinstance(part, TowerMerger)]
    readers = [part.label() for part in spatial if part.needed() & {Need.TOWER_GROUPS, *FROM_TOWER}]
    first = mergers[0].label() if mergers else "a part that reads them"
    if mergers and not layout.tower_blocks:
        raise UnsupportedError(
            complaint(f"the vision tower under {first!r}",
                      "be made of plain blocks, whose patches become one visual token each",
                      type(layout.entry).__name__, "its adapter declares no tower_blocks: choose another strategy")
        )  # fmt: skip
    if len(mergers) > 1 or (mergers and readers != [first]):
        raise UnsupportedError(
            complaint(f"a strategy beside {first!r}",
                      "not read the vision tower, whose tokens merge, and not merge them itself",
                      sorted({*readers, *(part.label() for part in mergers[1:])} - {first}),
                      "combine it with one that reads features, or acts later")
        )  # fmt: skip
    if readers and not mergers and any(Need.TOWER_GROUPS in part.needed() for part in spatial):
        raise UnsupportedError(
            complaint("Need.TOWER_GROUPS", "be asked for by a tokentrim.TowerMerger", readers,
                      "say in merges_in_tower() how many pairs merge")
        )  # fmt: skip


def _check_needs(label: str, needed: frozenset[Need], served: frozenset[Need], where: str) -> None:
    missing = needed - served
    if missing:
        raise UnsupportedError(
            complaint(
                f"needs of {label!r}",
                f"be available {where}",
                sorted(n.value for n in missing),
                f"what can be had there: {sorted(n.value for n in served)}",
            )
        )


def _check_served(strategy: Strategy, unserved: Mapping[Need, str]) -> None:
    missing = sorted(strategy.needed() & unserved.keys(), key=lambda need: need.value)
    if missing:
        raise UnsupportedError(
            complaint(
                f"needs of {strategy.label()!r}",
                "be what this model can give",
                [need.value for need in missing],
                "; ".join(dict.fromkeys(unserved[need] for need in missing)),
            )
        )
