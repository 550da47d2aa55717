"""Strategies that ask for everything, keep a note of what they saw, and cut where they are told."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr

from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import AT_STEPS, FROM_LAYERS, FROM_TOWER, LayerSite, Need, StepSite
from tokentrim.contracts.strategy import SpatialSelector, TemporalScorer
from tokentrim.counting.schedule import Schedule

_ANYWHERE = FROM_TOWER | {
    Need.HIDDEN, Need.VISION_HIDDEN, Need.FEATURES, Need.TEXT_EMBEDS, Need.TEXT_HIDDEN, Need.GRID, Need.RANDOM,
    Need.FINAL_NORM, Need.TEXT_IDS,
}  # fmt: skip
_NAMES = {
    Need.LAST_ROW: "last_row",
    Need.TEXT_ROWS: "text_rows",
    Need.WINDOW_ROWS: "window_rows",
    Need.COLUMN_MEAN: "column_mean",
    Need.NEXT_ROW: "next_row",
    Need.NEXT_ROW_PLAIN: "next_row_plain",
    Need.HEAD_PEAKS: "head_peaks",
    Need.HIDDEN_BEFORE: "hidden_before",
    Need.TEXT_KEYS: "text_keys",
    Need.KEYS: "keys",
    Need.VALUES: "values",
    Need.HIDDEN: "hidden",
    Need.VISION_ROWS: "vision_rows",
    Need.VISION_COLUMNS: "vision_columns",
    Need.VISION_LOGITS: "vision_logits",
    Need.VISION_WIDE: "vision_wide",
    Need.VISION_KEYS: "vision_keys",
    Need.VISION_HIDDEN: "vision_hidden",
    Need.FEATURES: "features",
    Need.TEXT_EMBEDS: "text_embeds",
    Need.TEXT_IDS: "text_ids",
    Need.TEXT_HIDDEN: "text_hidden",
    Need.GRID: "grid",
}


class Probe(SpatialSelector):
    """At each boundary of ``at`` notes all it may see, then keeps every second token that is still there."""

    name: ClassVar[str] = "probe"
    needs: ClassVar[frozenset[Need]] = FROM_LAYERS | _ANYWHERE
    at: tuple[int, ...] = (2,)
    blocks: tuple[int, ...] = (-2,)
    window: int = 3
    halvings: int = 1
    _seen: dict[int, dict[str, Any]] = PrivateAttr(default_factory=dict)

    def needed(self) -> frozenset[Need]:
        return self.needs if max(self.at) > 0 else _ANYWHERE

    def needed_at(self, boundary: int) -> frozenset[Need]:
        return self.needed() if boundary else _ANYWHERE

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        return self.blocks

    def wants_window(self) -> int:
        return self.window

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({boundary: n_visual // 2 ** (i + self.halvings) for i, boundary in enumerate(self.at)})

    def select(self, site: LayerSite, count: torch.Tensor) -> Selection:
        seen = {_NAMES[need]: getattr(site, _NAMES[need]) for need in self.needed_at(site.boundary) & _NAMES.keys()}
        seen["normed"] = site.final_norm(site.hidden)
        noise = site.random(3, salt=site.boundary)
        seen["projected"] = site.project(site.vision_hidden)
        self._seen[site.boundary] = {**seen, "noise": noise, "ids": site.ids, "n_visual": site.n_visual}
        counts = tuple(int(c) for c in count)
        mask = (torch.arange(site.ids.shape[1]) % 2 == 0).expand_as(site.ids) & site.valid
        return Selection.from_mask(mask, counts)


class StepProbe(TemporalScorer):
    """Notes what it sees in every layer at every decode forward; lets the lowest numbers go, one per forward.

    ``back``: how many layers before its own it reads the current row; ``stays``: whether what it lets go may return.
    """

    name: ClassVar[str] = "step-probe"
    needs: ClassVar[frozenset[Need]] = AT_STEPS
    window: int = 3
    back: int = 0
    stays: bool = False
    _seen: dict[tuple[int, int], dict[str, Any]] = PrivateAttr(default_factory=dict)

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return max(0, n_prefill - step)

    def wants_window(self) -> int:
        return self.window

    def evicts(self) -> bool:
        return not self.stays

    def row_layer(self, layer: int, shape: Any) -> int:
        return max(0, layer - self.back)

    def score(self, site: StepSite) -> torch.Tensor:
        self._seen[site.step, site.layer] = {
            "last_row": site.last_row,
            "prompt_row": site.prompt_row,
            "prompt_columns": site.prompt_columns,
            "prompt_window": site.prompt_window,
            "accumulated": site.accumulated,
            "keys": site.keys,
            "values": site.values,
            "noise": site.random(3),
            "ids": site.ids,
        }
        return site.ids.float()
