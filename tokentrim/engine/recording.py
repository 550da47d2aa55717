"""Recording decisions: what a part was shown, how it scored it, and what it decided. Off unless somebody asks.

A trace says what was kept; this says why. Records are made in the engine's own deciding step, so a score in one is the
very number that ranked the token.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import LayerSite, Note, StepSite
from tokentrim.contracts.strategy import Spatial, Temporal


@dataclass(frozen=True, eq=False)  # records hold tensors, which have no truth value
class Decided:
    """One decision, on the host.

    Attributes:
        part: who decided.
        boundary: where, for a spatial part; None for a temporal one.
        step: decode forward, for a temporal part; None for a spatial one.
        layer: decoder layer, for a temporal part; None for a spatial one.
        n_visual: current visual tokens of each row.
        ids: int64 [B, N], raster number of each current visual token, -1 in padding.
        scores: float [B, N] that the decision ranked by, or None where the part has none, or did not tell.
        about: what the scores decide, where they do not decide everything.
        selection: what was decided; its indices count current tokens. None where a temporal part ranked once, and the
            lowest leave at every later step.
    """

    part: Spatial | Temporal
    boundary: int | None
    step: int | None
    layer: int | None
    n_visual: tuple[int, ...]
    ids: Tensor
    scores: Tensor | None
    about: str
    selection: Selection | None


_RECORDS: ContextVar[list[Decided] | None] = ContextVar("tokentrim_decisions", default=None)


@contextmanager
def recording() -> Generator[list[Decided]]:
    """A list that every decision taken inside the block is added to, whichever model and session takes it."""
    records: list[Decided] = []
    token = _RECORDS.set(records)
    try:
        yield records
    finally:
        _RECORDS.reset(token)


def notes() -> list[Note] | None:
    """Where a site keeps what it is told, or None while nobody records."""
    return None if _RECORDS.get() is None else []


def record(
    part: Spatial | Temporal, site: LayerSite | StepSite, scores: Tensor | None, selection: Selection | None
) -> None:
    """Add one decision, if anybody records: ``scores`` of a scorer, or what a selector last noted."""
    records = _RECORDS.get()
    if records is None:
        return
    about = ""
    if scores is None and site.notes:
        scores, about = site.notes[-1].scores, site.notes[-1].about
    records.append(
        Decided(
            part=part,
            boundary=getattr(site, "boundary", None),
            step=getattr(site, "step", None),
            layer=getattr(site, "layer", None),
            n_visual=site.n_visual,
            ids=site.ids.detach().cpu().clone(),
            scores=None if scores is None else scores.detach().float().cpu().clone(),
            about=about,
            selection=selection,
        )
    )
