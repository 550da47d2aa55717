"""Selection: what a strategy decides. The engine alone applies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokentrim.errors import StrategyError, complaint

if TYPE_CHECKING:  # imported where something is decided: a plan imports strategies, and decides nothing
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Which of the current visual tokens go on, per sample, and what merges into what.

    Indices count the *current* visual tokens of the sample (0..N_current-1, raster order), not the original ones.

    Attributes:
        kept: int64 [batch, n_max]; ascending and unique in each row; slots past ``counts[row]`` hold -1.
        counts: number kept per row, as host integers (the engine plans shapes with them, without a device sync).
        target: int64 [batch, N_current] or None. For merging methods: the slot (0..counts-1) of ``kept`` that each
            current token is merged into, -1 for a token that is simply dropped. A kept token points at itself.
        weight: float [batch, N_current] or None. Weight of each token in its target's weighted mean; default 1.
        reduce: whether a kept token becomes the weighted mean of its group, or the weighted sum (a kept token that
            nothing is merged into has weight 1 by default, and stays what it is either way).
        features: [batch, n_max, D] or None. For methods that compute new tokens: what stands at the kept positions
            from here on, instead of anything merged. D is the language model's width.
        gone: int64 [batch, N_current - n] or None: the indices that are not kept, in any order. Only for selections
            with equal counts in rows of equal length, by makers who know them anyway; it spares a search.
    """

    kept: Tensor
    counts: tuple[int, ...]
    target: Tensor | None = None
    weight: Tensor | None = None
    reduce: Literal["mean", "sum"] = "mean"
    features: Tensor | None = None
    gone: Tensor | None = None

    @property
    def merges(self) -> bool:
        """Whether kept tokens are changed."""
        return self.target is not None or self.features is not None

    def check(self, n_current: tuple[int, ...], *, static: tuple[int, ...] | None) -> None:
        """Raise StrategyError unless shapes, counts and dtype are right (host-side checks only, no device sync).

        Args:
            n_current: current visual tokens of each row.
            static: the counts that a static schedule promised, or None when counts may depend on the data.
        """
        import torch

        rows = len(n_current)
        if self.kept.dtype != torch.int64 or self.kept.dim() != 2 or self.kept.shape[0] != rows:
            raise StrategyError(
                complaint(
                    "Selection.kept",
                    f"be int64 of shape [{rows}, n]",
                    f"{self.kept.dtype} {tuple(self.kept.shape)}",
                    "return one row of kept indices per sample",
                )
            )
        if len(self.counts) != rows or max(self.counts, default=0) > self.kept.shape[1]:
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    "give one count per row, none above kept's width",
                    self.counts,
                    "build selections with top_selection() or Selection.from_mask()",
                )
            )
        if any(count < 0 or count > n for count, n in zip(self.counts, n_current, strict=True)):
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    f"lie between 0 and the current tokens {n_current}",
                    self.counts,
                    "a strategy cannot keep what is no longer there",
                )
            )
        if static is not None and self.counts != static:
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    f"equal the schedule's {static}",
                    self.counts,
                    "declare count_is_static = False if the count depends on the data",
                )
            )

    def check_indices(self, n_current: tuple[int, ...]) -> None:
        """Raise StrategyError unless every row is ascending, unique and in range (reads the device: for tests)."""
        for row, (count, n) in enumerate(zip(self.counts, n_current, strict=True)):
            indices = self.kept[row, :count]
            if self.gone is not None:
                both: list[int] = [*indices.tolist(), *self.gone[row].tolist()]
                if sorted(both) != list(range(n)):
                    raise StrategyError(
                        complaint(
                            f"Selection.gone of row {row}",
                            f"be the rest of 0..{n - 1}",
                            self.gone[row].tolist(),
                            "leave it None: the engine finds it",
                        )
                    )
            ascending = bool((indices[1:] > indices[:-1]).all())
            in_range = bool(((indices >= 0) & (indices < n)).all())
            if not (ascending and in_range):
                raise StrategyError(
                    complaint(
                        f"Selection.kept of row {row}",
                        f"be ascending, unique and in 0..{n - 1}",
                        indices.tolist(),
                        "sort the kept indices; keep text and positions in order",
                    )
                )

    @classmethod
    def from_mask(cls, mask: Tensor, counts: tuple[int, ...]) -> Selection:
        """Selection that keeps where ``mask`` [batch, N_current] is True; ``counts`` are its row sums."""
        width = max(counts, default=0)
        # A stable sort of "dropped?" lists the kept positions first, in raster order.
        order = (~mask).byte().argsort(dim=-1, stable=True)[:, :width]
        return cls(pad_rows(order, counts), counts)

    @classmethod
    def everything(cls, n_current: tuple[int, ...], device: torch.device) -> Selection:
        """Selection that keeps all current tokens."""
        import torch

        width = max(n_current, default=0)
        kept = torch.arange(width, device=device).expand(len(n_current), width)
        return cls(pad_rows(kept, n_current), n_current)


def pad_rows(kept: Tensor, counts: tuple[int, ...]) -> Tensor:
    """``kept`` [batch, width] with -1 in the slots past each row's count (returned as is when no row is short)."""
    import torch

    width = kept.shape[1]
    if all(count == width for count in counts):
        return kept
    limit = torch.tensor(counts, device=kept.device).unsqueeze(1)
    return kept.masked_fill(torch.arange(width, device=kept.device) >= limit, -1)


def _sorted(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the ``count`` highest scores of each row, ascending, and of the others, in any order."""
    # argsort(stable) rather than topk: topk leaves the order of ties to the device.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values, order[:, count:]


def _highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As :func:`_sorted`, for 0 < count < N, by a threshold and two counts: sorting several rows takes far longer.

    Above the last score that is kept, or at the best one that is not, everything is decided; of the scores that equal
    it the lowest indices are kept.
    """
    import torch

    width = scores.shape[1]
    if 2 * count <= width:
        threshold = torch.topk(scores, count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    else:
        threshold = torch.topk(scores, width - count, dim=1, largest=False, sorted=False).values
        threshold = threshold.amax(dim=1, keepdim=True)
    above, equal = scores > threshold, scores == threshold
    room = count - above.sum(dim=1, keepdim=True)
    kept = above | (equal & (equal.cumsum(dim=1) <= room))
    # One permutation: what is kept in front, the rest behind, both in their order. NaN, which is an error said later,
    # may leave a row with fewer than ``count``; the permutation stays one.
    before, places = kept.cumsum(dim=1), torch.arange(width, device=scores.device)
    target = torch.where(kept, before - 1, places - before + before[:, -1:])
    order = torch.empty_like(target).scatter_(1, target, places.expand_as(target))
    return order[:, :count], order[:, count:]


def top_selection(scores: Tensor, counts: tuple[int, ...], n_current: tuple[int, ...]) -> Selection:
    """Keep the ``counts[row]`` highest scores of each row; equal scores go to the lower index.

    Args:
        scores: [batch, N_current], higher = kept. Columns past a row's ``n_current`` are ignored.
        counts: tokens to keep per row.
        n_current: real tokens per row.
    """
    import torch

    width = max(counts, default=0)
    if any(n != scores.shape[1] for n in n_current):
        limit = torch.tensor(n_current, device=scores.device).unsqueeze(1)
        scores = scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= limit, float("-inf"))
    if all(count == width for count in counts):
        kept, rest = (
            _highest(scores, width) if len(counts) > 1 and 0 < width < scores.shape[1] else _sorted(scores, width)
        )
        even = all(n == scores.shape[1] for n in n_current)
        return Selection(kept, counts, gone=rest if even else None)
    # argsort(stable) rather than topk: topk leaves the order of ties to the device.
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :width]
    limit = torch.tensor(counts, device=scores.device).unsqueeze(1)
    beyond = torch.arange(width, device=scores.device) >= limit
    order = torch.sort(order.masked_fill(beyond, torch.iinfo(torch.int64).max), dim=-1).values
    return Selection(order.masked_fill(beyond, -1), counts)
