"""FitPrune's calibration: how many visual tokens each layer can lose when a share of the attention on them may go.

The rule is the released code's (arXiv 2409.10197). At a share alpha, in every question by itself, from shallow to deep:
of the visual tokens that are left, sorted by the attention that they receive from the image, the longest run of the
lowest goes that leaves ``1 - alpha`` of the attention which the unpruned model has there, less one token; likewise by
the attention from the question; what both name is deleted. Behind the layer where the target is met nothing more goes.
The share alpha is bisected, and a layer's number is the mean over the questions, rounded down.

Ours: the recipe is that of the least alpha that met the target (the code prints the one tried last, which may not);
FLOPs are counted as this library prunes, behind whole layers; where everything could go, one token stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import torch
from pydantic import PrivateAttr
from torch import Tensor

from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.contracts.strategy import SpatialSelector
from tokentrim.counting.costs import physical_flops
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape
from tokentrim.runs.batches import Batch, model_inputs
from tokentrim.runs.work import Work
from tokentrim.session import located, trim

CLOSE_ENOUGH: Final = 0.01  # width at which the bisection of alpha ends
HALVINGS: Final = 7  # halvings of [0, 1] until then


def deletable(received: Tensor, n: Tensor, least: Tensor) -> Tensor:
    """int64 [B]: how many of the tokens that receive least may go, so that ``least`` is left, less one.

    Args:
        received: float [B, N], attention that each token receives.
        n: int64 [B], tokens of each row; what stands behind is ignored.
        least: float [B], what has to be left.
    """
    width = received.shape[1]
    behind = torch.arange(width, device=received.device) >= n.unsqueeze(1)
    lowest = received.masked_fill(behind, float("inf")).sort(dim=1).values.masked_fill(behind, 0.0)
    left = lowest.sum(dim=1, keepdim=True) - lowest.cumsum(dim=1) + lowest  # what is left when 0, 1, ... have gone
    short = (left < least.unsqueeze(1)) | behind
    first = torch.where(short.any(dim=1), short.byte().argmax(dim=1), width)
    return (torch.minimum(first, n) - 1).clamp(min=0)


class Deleting(SpatialSelector):
    """Deletes at every boundary what both rankings name, at a share ``alpha``; or notes the attention, without one."""

    name: ClassVar[str] = "fitprune-calibration"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HEAD_PEAKS})
    count_is_static: ClassVar[bool] = False

    alpha: float | None = None
    first: int = 1
    _whole: dict[int, Tensor] = PrivateAttr(default_factory=dict[int, Tensor])
    _left: dict[int, tuple[int, ...]] = PrivateAttr(default_factory=dict[int, tuple[int, ...]])
    _start: tuple[int, ...] = PrivateAttr(default=())

    @classmethod
    def of(cls, alpha: float, first: int, whole: dict[int, Tensor]) -> Deleting:
        """Deletes, where ``whole`` [B, 2] is the attention of the unpruned model at each boundary."""
        made = cls(alpha=alpha, first=first)
        made._whole = whole
        return made

    @property
    def whole(self) -> dict[int, Tensor]:
        """Attention from image and question [B, 2] at each boundary, as noted."""
        return self._whole

    @property
    def left(self) -> dict[int, tuple[int, ...]]:
        """Visual tokens of each row that every boundary let pass."""
        return self._left

    @property
    def start(self) -> tuple[int, ...]:
        """Visual tokens of each row before anything goes."""
        return self._start

    def begin(self, prompt: PromptInfo) -> None:
        """Note how many there are."""
        self._start = prompt.n_visual

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Any number at any boundary."""
        return Schedule.of(dict.fromkeys(range(self.first, shape.n_layers), n_visual))

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What is not named by both."""
        n = torch.tensor(site.n_visual, device=site.device)
        image, question = received(site, n)
        if self.alpha is None:
            self._whole[site.boundary] = torch.stack([image.sum(dim=1), question.sum(dim=1)], dim=1)
            return Selection.everything(site.n_visual, site.device)
        least = self._whole[site.boundary] * (1 - self.alpha)
        gone = named(image, n, least[:, 0]) & named(question, n, least[:, 1])
        mask = site.valid & ~gone
        self._left[site.boundary] = tuple(mask.sum(dim=1).tolist())
        return Selection.from_mask(mask, self._left[site.boundary])


def received(site: LayerSite, n: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, N] that each token receives from the image, per visual token left, and from the question."""
    peaks = site.head_peaks.masked_fill(~site.valid.unsqueeze(1), 0.0)
    return peaks[:, 0] / n.clamp(min=1).unsqueeze(1), peaks[:, 1]


def named(scores: Tensor, n: Tensor, least: Tensor) -> Tensor:
    """bool [B, N]: the :func:`deletable` tokens of a ranking."""
    behind = torch.arange(scores.shape[1], device=scores.device) >= n.unsqueeze(1)
    order = scores.masked_fill(behind, float("inf")).argsort(dim=1, stable=True)
    lowest = torch.arange(scores.shape[1], device=scores.device) < deletable(scores, n, least).unsqueeze(1)
    return torch.zeros_like(behind).scatter(1, order, lowest)


@dataclass(frozen=True)
class Deleted:
    """What goes at a share alpha, before the target is looked at; both by layer, means over questions.

    Attributes:
        gone: share of all visual tokens that goes behind each layer; 0 behind the last.
        flops: FLOPs of each layer for the tokens that it sees, as a share of the unpruned layer's.
    """

    gone: tuple[float, ...]
    flops: tuple[float, ...]

    @classmethod
    def mean(cls, parts: Sequence[Sequence[float]]) -> Deleted:
        """Of several measurements, each ``gone`` and then ``flops``."""
        numbers = [sum(column) / len(parts) for column in zip(*parts, strict=True)]
        half = len(numbers) // 2
        return cls(tuple(numbers[:half]), tuple(numbers[half:]))

    def until(self, cut: float) -> tuple[tuple[float, ...], float]:
        """(``gone`` with nothing behind the layer where ``cut`` of all FLOPs is saved, what is saved then)."""
        layers = len(self.gone)
        for layer in range(layers):
            used = sum(self.flops[:layer]) + (layers - layer) * self.flops[layer]
            if used <= (1 - cut) * layers:
                return self.gone[:layer] + (0.0,) * (layers - layer), 1 - used / layers
        return self.gone, 1 - sum(self.flops) / layers


def measured(work: Work, alpha: float, first: int, whole: dict[int, dict[int, Tensor]]) -> list[float]:
    """A :class:`Deleted` of the questions of a task as numbers, ``gone`` and then ``flops``.

    Args:
        work: the model and its questions.
        alpha: share of attention that may go.
        first: first boundary at which tokens may go.
        whole: attention of the unpruned model by batch and boundary; what is not there is measured, and kept there.
    """
    shape = located(work.loaded.model)[1].shape
    rows: list[list[float]] = []
    for place, batch in enumerate(work.batches):
        if place not in whole:
            whole[place] = _run(work, batch, Deleting(first=first)).whole
        done = _run(work, batch, Deleting.of(alpha, first, whole[place]))
        for row, total in enumerate(done.start):
            counts, left = list[int](), total
            for layer in range(shape.n_layers):
                left = done.left[layer][row] if layer in done.left else left
                counts.append(left)
            gone = [(before - after) / max(total, 1) for before, after in pairwise([*counts, counts[-1]])]
            unpruned = physical_flops(total, total, shape) or 1
            rows.append([*gone, *(physical_flops(n, n, shape) / unpruned for n in counts)])
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _run(work: Work, batch: Batch, strategy: Deleting) -> Deleting:
    """The strategy after the prompts of a batch."""
    model: Any = work.loaded.model
    with trim(model, strategy, record=False), torch.inference_mode():
        model.generate(**model_inputs(work.loaded, batch), max_new_tokens=1, do_sample=False)
    return strategy


def fit(measure: Callable[[float], Deleted], cut: float) -> tuple[float | None, list[dict[str, float]]]:
    """(the least alpha of a bisection at which ``cut`` of the FLOPs is saved, None where none does; every step)."""
    low, high, best = 0.0, 1.0, None
    trace: list[dict[str, float]] = []
    while high - low > CLOSE_ENOUGH:
        alpha = (low + high) / 2
        saved = measure(alpha).until(cut)[1]
        trace.append({"alpha": alpha, "flops_cut": round(saved, 6)})
        if saved >= cut:
            high = best = alpha
        else:
            low = alpha
    return best, trace


def counts_of(gone: Sequence[float], n_visual: int) -> tuple[int, ...]:
    """Visual tokens that each layer sees: every layer deletes the mean, rounded down."""
    counts, left = list[int](), n_visual
    for share in gone:
        counts.append(left)
        left -= int(share * n_visual + 1e-9)
    return tuple(counts)
