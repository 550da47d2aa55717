"""Asking a strategy: build the site it sees, call it, check what it returned."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import Spatial, SpatialScorer, Temporal, TemporalScorer
from tokentrim.engine import recording
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


def decide_layer(part: Spatial, counts: tuple[int, ...], site: LayerSite, doubts: Doubts) -> Selection:
    """The Selection of a spatial part at a boundary, checked; ``doubts`` notes whether scores were numbers.

    Raises:
        StrategyError: when the part fails or returns something that breaks the contract; names part and boundary.
    """
    where = f"{part.label()!r} at boundary {site.boundary}"
    with _blamed(where):
        scores = part.score(site) if isinstance(part, SpatialScorer) else None
        selection = _selected(part, site, scores, counts)
        if scores is not None:
            doubts.note(where, scores.detach(), site.valid)
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


def decide_step(part: Temporal, counts: tuple[int, ...], site: StepSite) -> Selection:
    """The Selection of a temporal part in one layer at one decode forward, checked."""
    with _blamed(f"{part.label()!r} at step {site.step}, layer {site.layer}"):
        scores = part.score(site) if isinstance(part, TemporalScorer) else None
        selection = _selected(part, site, scores, counts)
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


def decide_order(part: TemporalScorer, site: StepSite) -> Tensor:
    """int64 [B, N]: slots of ``site.ids`` in the order in which a part that ranks once lets them go.

    Padding comes first. What leaves last is what :func:`decide_step` would keep longest: of equal scores the lower
    raster number.
    """
    with _blamed(f"{part.label()!r} at step {site.step}, layer {site.layer}"):
        scores = _scores(part.score(site), site)
    recording.record(part, site, scores, None)
    if any(n != scores.shape[1] for n in site.n_visual):
        scores = scores.masked_fill(~site.valid, float("-inf"))
    return torch.argsort(scores, dim=-1, descending=True, stable=True).flip(-1)


def _selected(
    part: Spatial | Temporal, site: LayerSite | StepSite, scores: Tensor | None, counts: tuple[int, ...]
) -> Selection:
    """The highest ``scores`` of a scorer, or what a selector (``scores`` is None) returns; checked."""
    if scores is not None:
        selection = top_selection(_scores(scores, site), counts, site.n_visual)
    else:
        selection = part.select(site, torch.tensor(counts))  # type: ignore[union-attr]
    selection.check(site.n_visual, static=counts if part.count_is_static else None)
    recording.record(part, site, scores, selection)
    return selection


def _scores(scores: Tensor, site: LayerSite | StepSite) -> Tensor:
    wanted = tuple(site.ids.shape)
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


@contextmanager
def _blamed(where: str) -> Generator[None]:
    """Add who was asked, and where, to whatever goes wrong inside."""
    try:
        yield
    except TokentrimError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:
        raise StrategyError(
            complaint(
                f"strategy {where}",
                "decide without raising",
                f"{type(error).__name__}: {error}",
                "the cause is attached",
            )
        ) from error
