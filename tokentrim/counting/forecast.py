"""Plan: what a strategy will cost on a prompt, known before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokentrim.counting.costs import Usage
from tokentrim.counting.counted import Counted, CountedParts, SpatialCounts, TemporalCounts, TowerCounts
from tokentrim.counting.shape import ModelShape
from tokentrim.counting.spans import Spans
from tokentrim.counting.units import in_bytes, in_operations
from tokentrim.drawing.notebook import notes, table
from tokentrim.errors import StrategyError, complaint

TEXT_TOKENS = 35
"""Text tokens of a prompt where nobody says otherwise: what the published FLOPs columns assume."""
NEW_TOKENS = 64
"""New tokens where nobody says otherwise: the usual limit for a caption."""


Line = tuple[str, str, str, str]
HEADER: Final = ("what", "planned", "unpruned", "share")


@dataclass(frozen=True)
class Plan:
    """The planned cost of one strategy on one prompt.

    Attributes:
        strategy: label of the strategy.
        spec: the strategy as a plain dict.
        usage: planned counts, with every figure that follows from them.
        new_tokens: tokens to generate: one from prefill, the others from ``new_tokens - 1`` decode forwards.
        exact: whether the counts will be met exactly; otherwise they are upper bounds.
        notes: what a reader should know of these numbers.
    """

    strategy: str
    spec: dict[str, Any]
    usage: Usage
    new_tokens: int
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> ModelShape:
        """The model that the plan is for."""
        return self.usage.shape

    @property
    def layer_macs(self) -> tuple[int, ...]:
        """[L] MACs of each layer in prefill, field convention."""
        return self.usage.layer_macs

    @property
    def title(self) -> str:
        """What is planned, in one line."""
        tokens = f"{self.usage.n_visual} visual + {self.usage.n_text} text tokens, {self.new_tokens} new"
        return f"{self.strategy} on {self.shape.name or 'this model'}: {tokens}"

    def lines(self) -> tuple[list[Line], list[Line]]:
        """Lines of a table under ``HEADER``: of runs of equal layers, and of totals against the unpruned run."""
        usage, bound = self.usage, "" if self.exact else "at most "
        layers: list[Line] = []
        for first, end, count in layer_runs(usage.layer_tokens):
            where = f"layer {first}" if first == end else f"layers {first}-{end}"
            share = f"{count / usage.n_visual:.1%}" if usage.n_visual else "-"
            layers.append((f"visual tokens in {where}", f"{bound}{count}", str(usage.n_visual), share))
        totals = [(name, bound + planned, full, f"{share:.1%}") for name, planned, full, share in _totals(usage)]
        return layers, totals

    def _repr_html_(self) -> str:
        """The same table in a notebook."""
        layers, totals = self.lines()
        return table(HEADER, [*layers, *totals], self.title) + notes(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; MACs and FLOPs are counts, KV is in bytes."""
        usage, last = self.usage, self.usage.n_steps
        return {
            "strategy": self.strategy,
            "spec": self.spec,
            "model": self.shape.name,
            "exact": self.exact,
            "notes": list(self.notes),
            "n_layers": self.shape.n_layers,
            "n_visual": usage.n_visual,
            "n_text": usage.n_text,
            "new_tokens": self.new_tokens,
            "layer_tokens": list(usage.layer_tokens),
            "layer_macs_field": list(self.layer_macs),
            "macs_per_layer_field": usage.macs_per_layer,
            "prefill_flops": usage.prefill_flops,
            "prefill_flops_unpruned": usage.unpruned().prefill_flops,
            "prefill_flops_whole": usage.prefill_flops_whole,
            "decode_flops": usage.decode_flops,
            "decode_flops_ratio": usage.decode_flops_ratio,
            **usage.ratios(),
            "kv_bytes_peak": usage.kv_bytes(0),
            "kv_bytes_mean": usage.kv_bytes_mean,
            "kv_bytes_end": usage.kv_bytes(last),
            "kv_bytes_peak_unpruned": usage.unpruned().kv_bytes(0),
            "kv_bytes_mean_unpruned": usage.unpruned().kv_bytes_mean,
            "kv_bytes_end_unpruned": usage.unpruned().kv_bytes(last),
            "kv_visual_bytes_peak": usage.kv_visual_bytes(0),
            "kv_visual_bytes_end": usage.kv_visual_bytes(last),
        }


def plan(
    strategy: Counted,
    shape: ModelShape,
    n_visual: int,
    n_text: int = TEXT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> Plan:
    """The cost of ``strategy`` on one prompt, from configuration and shapes alone.

    Args:
        strategy: what prunes.
        shape: the model's numbers.
        n_visual: visual tokens of the prompt, >= 0.
        n_text: all other tokens of the prompt, >= 0.
        new_tokens: tokens to generate, >= 1.

    Raises:
        StrategyError: when a count is out of range, or the strategy's schedule does not fit.
    """
    for what, got, least in (("n_visual", n_visual, 0), ("n_text", n_text, 0), ("new_tokens", new_tokens, 1)):
        if got < least:
            raise StrategyError(complaint(f"{what} of a plan", f"be >= {least}", got, "count one prompt"))
    parts = strategy.parts()
    layer_tokens = planned_layer_tokens(parts.spatial, shape, n_visual)
    cached, seen = planned_cached(parts.temporal, shape, layer_tokens, new_tokens)
    exact = is_static(strategy)
    pairs, merged = planned_pairs(parts, shape, layer_tokens), planned_merges(parts.spatial, shape)
    return Plan(
        strategy=strategy.label(),
        spec=strategy.spec(),
        usage=Usage(shape, n_visual, n_text, layer_tokens, cached, pairs, seen, merged),
        new_tokens=new_tokens,
        exact=exact,
        notes=() if exact else ("counts depend on the data: every number here is an upper bound",),
    )


def is_static(strategy: Counted) -> bool:
    """Whether every count, of the strategy and of all its parts, follows from configuration and prompt shape."""
    parts = strategy.parts()
    members = [*parts.spatial, *([parts.temporal] if parts.temporal else [])]
    return strategy.count_is_static and all(member.count_is_static for member in members)


def planned_layer_tokens(parts: Sequence[SpatialCounts], shape: ModelShape, n_visual: int) -> tuple[int, ...]:
    """[L] visual tokens of each layer: every part plans from the prompt, and no part brings a token back.

    Each part is told the prompt's original count, whatever an earlier part left, and its own counts are clipped
    to what is there. So a composition keeps at each boundary what the sparser of its parts keeps, in any order.
    """
    layers = [n_visual] * shape.n_layers
    for part in parts:
        own = part.schedule(shape, n_visual).per_layer(shape.n_layers, n_visual)
        layers = [min(current, count) for current, count in zip(layers, own, strict=True)]
    return tuple(layers)


def planned_merges(parts: Sequence[SpatialCounts], shape: ModelShape) -> tuple[int, ...]:
    """Pairs that merge in each block of the vision tower (see :class:`tokentrim.counting.costs.Usage`)."""
    part, vision = next((part for part in parts if isinstance(part, TowerCounts)), None), shape.vision
    if part is None or vision is None:
        return ()
    now, found = vision.n_tokens - vision.cls, list[int]()
    wanted = part.merges_in_tower(now, vision.merging_blocks)
    for block in range(vision.merging_blocks):
        found.append(min(wanted[block], now // 2) if block < len(wanted) else 0)
        now -= found[-1]
    return tuple(found)


def planned_pairs(parts: CountedParts, shape: ModelShape, layer_tokens: tuple[int, ...]) -> tuple[int, ...]:
    """[L] pairs of visual tokens that each layer computes (see :class:`tokentrim.counting.costs.Usage`); empty = all.

    Where the prompt's pictures are not whole grids of the shape's (tiled ones are not), all are counted.
    """
    editor, vision = parts.attention, shape.vision
    size = 0 if vision is None else vision.rows * vision.cols
    if editor is None or vision is None or not size:
        return ()
    pairs = [count * count for count in layer_tokens]
    known: dict[tuple[int, int], int] = {}  # most layers are edited alike
    for layer, count in enumerate(layer_tokens):
        edit = editor.edit(layer, shape)
        if edit is not None and edit.radius is not None and count % size == 0:
            key = (count // size, edit.radius)
            if key not in known:
                known[key] = Spans.raster(vision.rows, vision.cols, *key).pairs
            pairs[layer] = known[key]
    return tuple(pairs)


def planned_cached(
    part: TemporalCounts | None, shape: ModelShape, layer_tokens: tuple[int, ...], new_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """[S][L] visual entries that each layer holds in decode forward 1..S, and of them those that it sees.

    Of a part that evicts, what is held never rises over steps, and is all seen (the second is then empty).
    """
    steps = range(1, new_tokens)
    unchanged = (layer_tokens,) * len(steps)
    if part is None:
        return unchanged, ()
    part, rows, current = part.for_answer(new_tokens), [], layer_tokens
    for step in steps:
        wanted = [part.count(step, layer, n, shape) for layer, n in enumerate(layer_tokens)]
        limits = current if part.evicts() else layer_tokens
        current = tuple(min(count, limit) for count, limit in zip(wanted, limits, strict=True))
        rows.append(current)
    return (tuple(rows), ()) if part.evicts() else (unchanged, tuple(rows))


def _totals(usage: Usage) -> list[tuple[str, str, str, float]]:
    """Rows ``(what, planned, unpruned, share)`` of the figures that sum over layers."""
    full, last = usage.unpruned(), usage.n_steps

    def row(name: str, values: Sequence[str], share: float) -> tuple[str, str, str, float]:
        planned, unpruned = values
        return name, planned, unpruned, share

    def held(name: str, planned: float, unpruned: float, share: float) -> tuple[str, str, str, float]:
        return row(name, in_bytes(planned, unpruned), share)

    peak, visual = usage.kv_visual_bytes(0), full.kv_visual_bytes(0)
    mean, end = usage.kv_mean_ratio, usage.kv_visual_bytes(last)
    tokens = [f"{mean_tokens:,.2f}" for mean_tokens in (usage.layer_mean_tokens, full.layer_mean_tokens)]
    macs = in_operations(usage.macs_per_layer, full.macs_per_layer)
    flops = in_operations(usage.prefill_flops, full.prefill_flops)
    seen = usage.kv_read_ratio
    # Where nothing is hidden, what is seen is what is held.
    hidden = [held("visual KV seen, mean over decoding", seen * visual, visual, seen)] if usage.seen else []
    return [
        row("layer-mean visual tokens", tokens, usage.layer_mean_ratio),
        row("MACs per layer, field", macs, usage.flops_ratio_field),
        row("prefill FLOPs, physical", flops, usage.flops_ratio),
        held("visual KV, end of prefill", peak, visual, usage.kv_peak_ratio),
        held("visual KV, mean over decoding", mean * visual, visual, mean),
        *hidden,
        held("visual KV, last forward", end, visual, usage.kv_end_ratio),
        held("all KV, mean over decoding", usage.kv_bytes_mean, full.kv_bytes_mean, usage.kv_total_mean_ratio),
    ]


def layer_runs(counts: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """``(first layer, last layer, count)`` for every run of neighbouring layers with equal counts."""
    runs: list[tuple[int, int, int]] = []
    for layer, count in enumerate(counts):
        if runs and runs[-1][2] == count:
            runs[-1] = (runs[-1][0], layer, count)
        else:
            runs.append((layer, layer, count))
    return runs
