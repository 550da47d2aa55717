"""Asking a strategy at a site, and the one place where what it decides is checked: at boundaries and steps alike.

Types, shapes, dtypes, devices and counts are known to the host and checked at once. Values are known to the device
alone: they are noted, and read when an answer is there. What is applied meanwhile is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.contracts.answers import blamed, name_of
from tokentrim.contracts.selection import Claim, Selection, rankable, require_tensor, top_selection
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import Spatial, SpatialScorer, Temporal, TemporalScorer
from tokentrim.engine import recording
from tokentrim.errors import StrategyError, complaint

Providers = Mapping[Need, Callable[[], Any]]

_MOST_NOTED: Final = 4096
"""Notes after which they are read even without an answer, so that a long loop of plain forwards does not hoard them."""
_NAMED: Final = 4
"""Places that an error names, of all where the same thing is wrong."""
_NUMBERS: Final = "compute them in float32, and mind divisions by zero; what was kept by them is arbitrary"
SCORES: Final = Claim("scores", "be numbers", "NaN", _NUMBERS)
_READ: Final = Claim(
    "what was read of the model", "be numbers", "NaN",
    "load the model in bfloat16 or float32: its activations overflow; what was kept by them is arbitrary",
)  # fmt: skip
_TOKENS_AT: Final = {
    Need.HIDDEN: 1, Need.HIDDEN_BEFORE: 1, Need.FEATURES: 1, Need.KEYS: 2, Need.VALUES: 2, Need.VISION_KEYS: 2,
    Need.VISION_HIDDEN: 1,
}  # fmt: skip
"""The dimension in which visual tokens lie in what a site gives; the last one elsewhere."""
_OF_TEXT: Final = (Need.TEXT_HIDDEN, Need.TEXT_EMBEDS, Need.TEXT_KEYS)


@dataclass(frozen=True)
class Place:
    """Who decides, and where.

    Attributes:
        part: who.
        boundary: before which decoder layer, for a spatial part.
        step: decode forward, for a temporal part.
        layer: decoder layer, for a temporal part.
    """

    part: Spatial | Temporal
    boundary: int | None = None
    step: int | None = None
    layer: int | None = None

    @classmethod
    def of(cls, part: Spatial | Temporal, site: LayerSite | StepSite) -> Place:
        """Where ``part`` is asked about ``site``."""
        if isinstance(site, LayerSite):
            return cls(part, boundary=site.boundary)
        return cls(part, step=site.step, layer=site.layer)

    def __str__(self) -> str:
        """Text for messages."""
        where = f"step {self.step}, layer {self.layer}" if self.boundary is None else f"boundary {self.boundary}"
        return f"{name_of(self.part)!r} at {where}"


class Doubts:
    """Claims that only the device can tell: noted as decisions come, and read when an answer is there.

    Reading at once would make the host wait in the middle of a forward.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Claim, Place]] = []
        self._wrong: list[Tensor] = []

    def note(self, claim: Claim, place: Place, wrong: Tensor) -> None:
        """``wrong`` bool []: whether ``claim`` does not hold at ``place``.

        Raises:
            StrategyError: when there are so many notes that they are settled now.
        """
        self._noted.append((claim, place))
        self._wrong.append(wrong)
        if len(self._noted) >= _MOST_NOTED:
            self.settle()

    def settle(self) -> None:
        """Forget what was noted.

        Raises:
            StrategyError: when a claim does not hold; names the parts, and boundaries or steps and layers.
        """
        noted, wrong = self._noted, self._wrong
        self._noted, self._wrong = [], []
        # Layers may lie on several devices.
        read: list[bool] = torch.stack([one.to(wrong[0].device) for one in wrong]).tolist() if wrong else []
        for claim in dict.fromkeys(claim for (claim, _), is_wrong in zip(noted, read, strict=True) if is_wrong):
            places = [place for (one, place), is_wrong in zip(noted, read, strict=True) if is_wrong and one is claim]
            names = list(dict.fromkeys(str(place) for place in places[:_NAMED]))
            more = len(places) - _NAMED
            whom = f"{claim.what} of {', '.join(names)}" + (f" and at {more} more places" if more > 0 else "")
            got = (claim.got,) if claim.got else ()
            raise StrategyError(complaint(whom, claim.must, *got, hint=claim.hint))


def decide(part: Spatial | Temporal, counts: tuple[int, ...], site: LayerSite | StepSite, doubts: Doubts) -> Selection:
    """The Selection of a part, checked and safe to apply; ``doubts`` notes what only the device knows of it.

    Raises:
        StrategyError: when the part fails or returns something that breaks the contract; names the part, and the
            boundary, or the step and the layer.
    """
    place = Place.of(part, site)
    with blamed(lambda: str(place)):
        shape, device, scores = site.ids.shape, site.device, None  # before anybody writes there
        if isinstance(part, SpatialScorer | TemporalScorer):
            scores = checked_scores(part.score(site), shape, device)  # type: ignore[arg-type]
            selection = top_selection(scores, counts, site.n_visual)
        else:
            selection = part.select(site, torch.tensor(counts))  # type: ignore[union-attr]
            selection = _checked(selection, part, counts, site, shape[1], device)
            found = selection.doubts(site.n_visual)
            for claim, wrong in found.items():
                doubts.note(claim, place, wrong)
            selection = selection.harmless(torch.stack([*found.values()]).any(), site.n_visual)
        if scores is None or isinstance(site, LayerSite):
            _note_readings(site, shape[1], doubts, place)
        if selection.doubtful is not None:
            doubts.note(SCORES, place, selection.doubtful.bool())
        for told in site.notes or ():
            require_tensor("noted scores", told.scores, tuple(shape), hint="note one number per current visual token")
        recording.record(part, site, scores, selection)
    return selection


def decide_order(part: TemporalScorer, site: StepSite, doubts: Doubts) -> Tensor:
    """int64 [B, N]: slots of ``site.ids`` in the order in which a part that ranks once lets them go.

    Padding comes first. What leaves last is what :func:`decide` would keep longest: of equal scores the lower
    raster number.
    """
    place = Place.of(part, site)
    with blamed(lambda: str(place)):
        shape, device = site.ids.shape, site.device  # before anybody writes there
        scores = checked_scores(part.score(site), shape, device)
        recording.record(part, site, scores, None)
    there = _there(site.n_visual, shape[1], device)
    if there is not None:
        scores = scores.masked_fill(~there, float("-inf"))
    doubts.note(SCORES, place, scores.isnan().any())
    return torch.argsort(scores, dim=-1, descending=True, stable=True).flip(-1)


def checked_scores(scores: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """What a scorer returned, as floats [B, N] that can be ranked.

    Raises:
        StrategyError: unless they are real numbers, one per current visual token, on the site's device.
    """
    require_tensor("scores", scores, tuple(shape), device=device, hint="return one number per current visual token")
    return rankable(scores.detach())


def _checked(
    selection: Any, part: Spatial | Temporal, counts: tuple[int, ...], site: LayerSite | StepSite, tokens: int,
    device: torch.device,
) -> Selection:  # fmt: skip
    """What a selector returned, once all that the host knows of it is right."""
    if not isinstance(selection, Selection):
        raise StrategyError(
            complaint("a decision", "be a tokentrim.Selection", type(selection).__name__,
                      "build one with top_selection() or Selection.from_mask()")
        )  # fmt: skip
    if (selection.merges or selection.behind is not None) and isinstance(site, StepSite):
        raise StrategyError(
            complaint(
                "a temporal Selection",
                "only drop: cached keys and values of different positions have no mean, and keep their place",
                "merge targets" if selection.merges else "tokens put behind the others",
                "return kept indices alone, or merge at a boundary of the prefill",
            )
        )
    if selection.behind is not None and not (selection.merges and getattr(part, "positions", "") == "renumber"):
        raise StrategyError(
            complaint(
                "a Selection that puts tokens behind the others",
                "merge, under positions 'renumber'",
                f"merges = {selection.merges}, positions = {getattr(part, 'positions', None)}",
                "leave behind out: tokens that stay what they are stay in order",
            )
        )
    if selection.merges and not part.merges:
        raise StrategyError(
            complaint(
                "a merging Selection",
                "come from a strategy that declares merges = True",
                "merges = False",
                "declare it on the class",
            )
        )
    static, width = counts if part.count_is_static else None, site.shape.hidden_size
    selection.check(site.n_visual, static=static, limit=counts, tokens=tokens, features=width, device=device)
    return selection


def _note_readings(site: LayerSite | StepSite, tokens: int, doubts: Doubts, place: Place) -> None:
    """Note NaN among what a part read: what it makes of them need not show them.

    Not of scorers at decode steps, which run in every layer at every step: there the scores have to tell.
    """
    found = [_not_numbers(need, what, site.n_visual, tokens) for need, what in site.cache.items()]
    wrong = [one for one in found if one is not None]
    if wrong:
        doubts.note(_READ, place, torch.stack(wrong).any())


def _not_numbers(need: Need, what: Any, n_visual: tuple[int, ...], tokens: int) -> Tensor | None:
    """bool []: whether there are NaN outside padding; None where what was read cannot hold any."""
    rows, *real = what if isinstance(what, tuple) else (what,)  # type: ignore[misc]
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        return None
    wrong = rows.isnan()
    if need in _OF_TEXT:
        wrong = wrong.any(dim=-1)
        return ((wrong.any(dim=1) if need == Need.TEXT_KEYS else wrong) & real[0]).any()
    if real:  # rows of text tokens, which may be padding as well
        wrong = wrong & real[0][:, None, :, None]
    by_token = wrong.unsqueeze(-1).transpose(1, _TOKENS_AT.get(need, wrong.dim() - 1)).flatten(2).any(dim=-1)
    there = _there(n_visual, tokens, rows.device)
    return (by_token if there is None else by_token & there).any()


def _there(n_visual: tuple[int, ...], tokens: int, device: torch.device) -> Tensor | None:
    """bool [B, N], False in padding; None where there is none."""
    if all(n == tokens for n in n_visual):
        return None
    return torch.arange(tokens, device=device) < torch.tensor(n_visual, device=device).unsqueeze(1)
