"""Asking a strategy: build the site it sees, call it, check what it returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import Spatial, SpatialScorer, Temporal, TemporalScorer
from tokentrim.counting.shape import ModelShape
from tokentrim.engine import recording
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import StrategyError, TokentrimError, complaint

Providers = Mapping[Need, Callable[[], Any]]


class Doubts:
    """Whether scores held NaN, which only the device knows: noted as they come, and read when an answer is there.

    Reading at once would make the host wait in the middle of the prefill.

    Attributes:
        check_indices: check every Selection's indices on the device (costs a synchronisation; for tests).
    """

    def __init__(self) -> None:
        self.check_indices = False
        self._found: dict[str, Tensor] = {}

    def note(self, where: str, scores: Tensor, valid: Tensor) -> None:
        """``scores`` [B, N] of the part and boundary that ``where`` names; ``valid`` is False in padding."""
        wrong = (scores.isnan() & valid).any()
        self._found[where] = self._found[where] | wrong if where in self._found else wrong

    def settle(self) -> None:
        """Forget what was noted.

        Raises:
            StrategyError: when there were NaN among the scores; names the parts and boundaries.
        """
        found, self._found = self._found, {}
        noted = list(found.values())  # layers may lie on several devices
        wrong: list[bool] = torch.stack([one.to(noted[0].device) for one in noted]).tolist() if noted else []
        names = [where for where, is_wrong in zip(found, wrong, strict=True) if is_wrong]
        if names:
            raise StrategyError(
                complaint(
                    f"scores of {', '.join(names)}",
                    "be numbers",
                    "NaN",
                    "compute them in float32, and mind divisions by zero; what was kept by them is arbitrary",
                )
            )


def decide_layer(
    part: Spatial,
    boundary: int,
    counts: tuple[int, ...],
    stream: Stream,
    *,
    shape: ModelShape,
    state: Any,
    sample_keys: Tensor,
    providers: Providers,
    doubts: Doubts,
) -> Selection:
    """The Selection of a spatial part at a boundary, checked; ``doubts`` notes whether scores were numbers.

    Raises:
        StrategyError: when the part fails or returns something that breaks the contract; names part and boundary.
    """
    site = LayerSite(
        shape=shape,
        n_visual=stream.n_visual,
        ids=stream.vis_ids,
        valid=stream.vis_valid,
        state=state,
        keys_of_rows=sample_keys,
        needs=part.needed(),
        providers=providers,
        boundary=boundary,
        notes=recording.notes(),
    )
    where = f"{part.label()!r} at boundary {boundary}"
    with _blamed(where):
        scores = part.score(site) if isinstance(part, SpatialScorer) else None
        selection = _selected(part, site, scores, counts, stream)
        if scores is not None:
            doubts.note(where, scores.detach(), stream.vis_valid)
        if selection.merges and not part.merges:
            raise StrategyError(
                complaint(
                    "a merging Selection",
                    "come from a strategy that declares merges = True",
                    "merges = False",
                    "declare it on the class",
                )
            )
    return selection


def decide_step(part: Temporal, counts: tuple[int, ...], stream: Stream, site: StepSite) -> Selection:
    """The Selection of a temporal part in one layer at one decode forward, checked."""
    with _blamed(f"{part.label()!r} at step {site.step}, layer {site.layer}"):
        scores = part.score(site) if isinstance(part, TemporalScorer) else None
        selection = _selected(part, site, scores, counts, stream)
        if selection.merges:
            raise StrategyError(
                complaint(
                    "a temporal Selection",
                    "only drop: cached keys and values of different positions have no mean",
                    "merge targets",
                    "return kept indices alone, or merge at a boundary of the prefill",
                )
            )
    return selection


def decide_order(part: TemporalScorer, stream: Stream, site: StepSite) -> Tensor:
    """int64 [B, N]: slots of ``stream.vis_ids`` in the order in which a part that ranks once lets them go.

    Padding comes first. What leaves last is what :func:`decide_step` would keep longest: of equal scores the lower
    raster number.
    """
    with _blamed(f"{part.label()!r} at step {site.step}, layer {site.layer}"):
        scores = _scores(part.score(site), stream)
    recording.record(part, site, scores, None)
    if any(n != scores.shape[1] for n in stream.n_visual):
        scores = scores.masked_fill(~stream.vis_valid, float("-inf"))
    return torch.argsort(scores, dim=-1, descending=True, stable=True).flip(-1)


def _selected(
    part: Spatial | Temporal, site: LayerSite | StepSite, scores: Tensor | None, counts: tuple[int, ...], stream: Stream
) -> Selection:
    """The highest ``scores`` of a scorer, or what a selector (``scores`` is None) returns; checked."""
    if scores is not None:
        selection = top_selection(_scores(scores, stream), counts, stream.n_visual)
    else:
        selection = part.select(site, torch.tensor(counts))  # type: ignore[union-attr]
    selection.check(stream.n_visual, static=counts if part.count_is_static else None)
    recording.record(part, site, scores, selection)
    return selection


def _scores(scores: Tensor, stream: Stream) -> Tensor:
    wanted = tuple(stream.vis_ids.shape)
    if tuple(scores.shape) != wanted:
        raise StrategyError(
            complaint(
                "scores",
                f"have the shape [batch, N_current] = {list(wanted)}",
                list(scores.shape),
                "return one number per current visual token",
            )
        )
    return scores.detach()


class _blamed:
    """Adds who was asked, and where, to whatever goes wrong inside."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, TokentrimError):
            raise type(error)(f"{self.where}: {error}") from error
        raise StrategyError(
            complaint(
                f"strategy {self.where}",
                "decide without raising",
                f"{type(error).__name__}: {error}",
                "the cause is attached",
            )
        ) from error
