"""Selection: what a strategy decides. The engine alone applies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from tokentrim.counting.schedule import is_whole
from tokentrim.errors import StrategyError, complaint

if TYPE_CHECKING:  # imported where something is decided: a plan imports strategies, and decides nothing
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Claim:
    """What must hold of numbers that only the device knows, in the words of an error.

    Attributes:
        what: must hold.
        must: the constraint, without the word "must".
        got: what is there where it does not hold; "" where it is not known.
        hint: what to do about it.
    """

    what: str
    must: str
    got: str
    hint: str


KEPT: Final = Claim(
    "Selection.kept", "be ascending, unique and in range in each row, and -1 past the row's count", "",
    "sort the kept indices; build selections with top_selection() or Selection.from_mask()",
)  # fmt: skip
TARGET: Final = Claim(
    "Selection.target", "be slots of kept, or -1 for what is dropped; a kept token points at its own slot", "",
    "number the slots of each row from 0, in the order of kept",
)  # fmt: skip
WEIGHT: Final = Claim(
    "Selection.weight", "be finite, and those of a mean add up to more than 0", "",
    "give a kept token a weight above 0, or leave the weights out",
)  # fmt: skip
FEATURES: Final = Claim("Selection.features", "be finite", "", "compute them in float32, and mind divisions by zero")


@dataclass(frozen=True)
class Selection:
    """Which of the current visual tokens go on, per sample, and what merges into what.

    Indices count the *current* visual tokens of the sample (0..N_current-1, raster order), not the original ones.

    Attributes:
        kept: int64 [batch, n_max]; ascending (but for ``behind``) and unique in each row; slots past ``counts[row]``
            hold -1.
        counts: number kept per row, as host integers (the engine plans shapes with them, without a device sync).
        target: int64 [batch, N_current] or None. For merging methods: the slot (0..counts-1) of ``kept`` that each
            current token is merged into, -1 for a token that is simply dropped. A kept token points at itself.
        weight: float [batch, N_current] or None. Weight of each token in its target's weighted mean; default 1.
        reduce: whether a kept token becomes the weighted mean of its group, or the weighted sum (a kept token that
            nothing is merged into has weight 1 by default, and stays what it is either way).
        features: [batch, n_max, D] or None. For methods that compute new tokens: what stands at the kept positions
            from here on, instead of anything merged. D is the language model's width.
        gone: int64 [batch, N_current - n] or None: the indices that are not kept, in any order, where counts are equal
            in rows of equal length. The engine reads it of its own selections alone; it spares a search.
        doubtful: bool [] or None: whether scores that the choice was made by held NaN, as :func:`top_selection` saw.
        behind: of each row, how many entries at the end of ``kept`` go on behind the last visual token of the row, in
            their order there; None = every token stays where it is. For merging methods with ``positions: renumber``.
    """

    kept: Tensor
    counts: tuple[int, ...]
    target: Tensor | None = None
    weight: Tensor | None = None
    reduce: Literal["mean", "sum"] = "mean"
    features: Tensor | None = None
    gone: Tensor | None = None
    doubtful: Tensor | None = None
    behind: tuple[int, ...] | None = None

    @property
    def merges(self) -> bool:
        """Whether kept tokens are changed."""
        return self.target is not None or self.features is not None

    def check(
        self,
        n_current: tuple[int, ...],
        *,
        static: tuple[int, ...] | None,
        limit: tuple[int, ...] | None = None,
        tokens: int | None = None,
        features: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Raise StrategyError unless shapes, counts and dtypes are right (host-side checks only, no device sync).

        Args:
            n_current: current visual tokens of each row.
            static: the counts that a static schedule promised, or None when counts may depend on the data.
            limit: the most that each row may keep; None = ``n_current``.
            tokens: columns of the current tokens, padding included; None = the largest of ``n_current``.
            features: the width that ``features`` must have; None = any.
            device: where all tensors must be; None = anywhere.
        """
        rows, tokens = len(n_current), max(n_current, default=0) if tokens is None else tokens
        require_tensor("Selection.kept", self.kept, (rows, None), whole=True, device=device,
                       hint="return one row of kept indices per sample")  # fmt: skip
        self._check_counts(n_current, static, limit)
        if self.target is not None:
            require_tensor("Selection.target", self.target, (rows, tokens), whole=True, device=device,
                           hint="give every current token the slot that it is merged into, or -1")  # fmt: skip
        if self.weight is not None:
            require_tensor("Selection.weight", self.weight, (rows, tokens), device=device,
                           hint="give every current token a number")  # fmt: skip
        if self.features is not None:
            require_tensor("Selection.features", self.features, (rows, None, features), device=device,
                           hint="give every kept token a vector as wide as the model's")  # fmt: skip
            if max(self.counts) > self.features.shape[1]:
                raise StrategyError(
                    complaint("Selection.features", f"hold {max(self.counts)} tokens per row", self.features.shape[1],
                              "give every kept token its vector")
                )  # fmt: skip
        if self.doubtful is not None:
            require_tensor("Selection.doubtful", self.doubtful, (), device=device, hint="leave it to top_selection()")
        lonely = self.weight is not None and self.target is None
        if lonely or self.reduce not in ("mean", "sum"):
            raise StrategyError(
                complaint("Selection.weight and Selection.reduce", "go with targets; reduce is 'mean' or 'sum'",
                          "no target" if lonely else self.reduce, "leave them out where nothing is merged")
            )  # fmt: skip

    def _check_counts(
        self, n_current: tuple[int, ...], static: tuple[int, ...] | None, limit: tuple[int, ...] | None
    ) -> None:
        rows, given, width = len(n_current), self.counts, self.kept.shape[1]
        whole = isinstance(given, tuple) and all(map(is_whole, given))  # pyright: ignore[reportUnnecessaryIsInstance]
        if not whole or len(given) != rows or max(given, default=0) > width:
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    f"be a tuple of {rows} whole numbers, one count per row, none above kept's width of {width}",
                    given,
                    "build selections with top_selection() or Selection.from_mask()",
                )
            )
        most = n_current if limit is None else tuple(map(min, n_current, limit))
        if any(count > top for count, top in zip(given, most, strict=True)):
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    f"lie between 0 and {most}",
                    given,
                    "a strategy cannot keep what is no longer there, nor more than its schedule says",
                )
            )
        behind = self.behind
        if behind is not None and (
            len(behind) != rows
            or any(not is_whole(n) or not 0 <= n <= count for n, count in zip(behind, given, strict=True))
        ):
            raise StrategyError(
                complaint(
                    "Selection.behind",
                    f"give one number per row, at most its count of {given}",
                    behind,
                    "count the entries at the end of kept that go behind the others",
                )
            )
        if static is not None and given != static:
            raise StrategyError(
                complaint(
                    "Selection.counts",
                    f"equal the schedule's {static}",
                    given,
                    "declare count_is_static = False if the count depends on the data",
                )
            )

    def doubts(self, n_current: tuple[int, ...]) -> dict[Claim, Tensor]:
        """What only the device knows of a selection that :meth:`check` has passed: bool [] per claim, True where it
        does not hold. Nothing is read, so nobody waits.
        """
        import torch

        slots, device, widest = max(self.counts, default=0), self.kept.device, max(n_current, default=0)
        kept = self.kept[:, :slots]
        counts, n = _per_row(self.counts, device), _per_row(n_current, device)
        used = torch.arange(slots, device=device) < counts
        before = torch.cat([kept.new_full((len(kept), 1), -1), kept], dim=1)[:, :-1]
        # What goes behind the others need not ascend: it must be there, and once.
        moved = torch.zeros_like(used)
        if self.behind is not None:
            moved = used & (torch.arange(slots, device=device) >= counts - _per_row(self.behind, device))
        wrong = torch.where(moved, kept < 0, kept <= before) | (kept >= n)
        if self.behind is not None:
            taken = used.expand_as(kept)
            places = kept.masked_fill(~taken, -1).clamp(-1, widest) + 1
            seen = kept.new_zeros(len(kept), widest + 2).scatter_add(1, places, taken.long())
            wrong = wrong | (seen.gather(1, places) > 1)
        found = {KEPT: torch.where(used, wrong, kept != -1).any()}
        if self.target is not None:
            there = torch.arange(self.target.shape[1], device=device) < n
            outside = ((self.target < -1) | (self.target >= counts)) & there
            own = self.target.gather(1, kept.clamp(0, self.target.shape[1] - 1))
            elsewhere = (own != torch.arange(slots, device=device)) & used
            found[TARGET] = outside.any() | elsewhere.any()
            if self.weight is not None:
                found[WEIGHT] = _unweighable(self.weight, self.target.masked_fill(~there, -1), used, self.reduce)
        if self.features is not None:
            found[FEATURES] = (~self.features[:, :slots].isfinite().all(dim=2) & used).any()
        return found

    def harmless(self, wrong: Tensor, n_current: tuple[int, ...]) -> Selection:
        """Itself; where ``wrong`` bool [] is True the first tokens instead, nothing merged, which can be applied until
        somebody reads what was wrong. What is merged in padding is dropped, and ``gone`` is left to the engine.
        """
        import torch

        slots = max(self.counts, default=0)
        first = pad_rows(torch.arange(slots, device=wrong.device).expand(len(self.counts), slots), self.counts)
        target = self.target
        if target is not None:
            beyond = torch.arange(target.shape[1], device=wrong.device) >= _per_row(n_current, wrong.device)
            target = target.masked_fill(wrong | beyond, -1)
        return replace(self, kept=torch.where(wrong, first, self.kept[:, :slots]), target=target, gone=None)

    def check_indices(self, n_current: tuple[int, ...]) -> None:
        """Raise StrategyError unless what :meth:`doubts` and ``gone`` say holds (reads the device: for tests)."""
        wrong = [claim for claim, is_wrong in self.doubts(n_current).items() if bool(is_wrong)]
        for claim in wrong:
            raise StrategyError(complaint(claim.what, claim.must, self.kept.tolist(), claim.hint))
        for row, n in enumerate(n_current if self.gone is not None else ()):
            both: list[int] = [*self.kept[row, : self.counts[row]].tolist(), *self.gone[row].tolist()]  # type: ignore[index]
            if sorted(both) != list(range(n)):
                raise StrategyError(complaint(f"Selection.gone of row {row}", f"be the rest of 0..{n - 1}", both))

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


def pad_rows(kept: Tensor, counts: Sequence[int]) -> Tensor:
    """``kept`` [batch, width] with -1 in the slots past each row's count (returned as is when no row is short)."""
    import torch

    width = kept.shape[1]
    if all(count == width for count in counts):
        return kept
    limit = torch.tensor(counts, device=kept.device).unsqueeze(1)
    return kept.masked_fill(torch.arange(width, device=kept.device) >= limit, -1)


def require_tensor(
    what: str,
    value: object,
    shape: tuple[int | None, ...],
    *,
    whole: bool = False,
    device: torch.device | None = None,
    hint: str,
) -> None:
    """Raise StrategyError unless ``value`` is a dense tensor of real numbers.

    Args:
        what: what it is, for the message.
        value: what a strategy gave.
        shape: that it must have; None = any size.
        whole: whether its dtype must be int64; else any real one will do.
        device: where it must be; None = anywhere.
        hint: what to do about it.
    """
    import torch

    must = f"{'int64' if whole else 'real numbers'} of shape [{', '.join('n' if n is None else str(n) for n in shape)}]"
    must = f"be a dense tensor of {must}" + (f" on {device}" if device is not None else "")
    if not isinstance(value, torch.Tensor):
        raise StrategyError(complaint(what, must, type(value).__name__, hint))
    fits = value.dtype == torch.int64 if whole else not value.dtype.is_complex
    fits = fits and value.layout == torch.strided and (device is None or value.device == device)
    if (
        not fits
        or value.dim() != len(shape)
        or any(n not in (None, got) for n, got in zip(shape, value.shape, strict=True))
    ):
        got = f"{value.dtype} of shape {list(value.shape)} on {value.device}"
        raise StrategyError(complaint(what, must, got, hint))


def rankable(scores: Tensor) -> Tensor:
    """``scores`` as floats that sort alike everywhere: whole numbers and bools as float64, which holds them exactly.

    Raises:
        StrategyError: for complex numbers, which have no order.
    """
    import torch

    if scores.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return scores
    if scores.dtype.is_complex:
        raise StrategyError(complaint("scores", "be real numbers", scores.dtype, "take their abs() or their real part"))
    return scores.double()


def _per_row(numbers: tuple[int, ...], device: torch.device) -> int | Tensor:
    """int64 [B, 1]; the number itself where it is the same in each row, which spares a copy to the device."""
    import torch

    return numbers[0] if len(set(numbers)) == 1 else torch.tensor(numbers, device=device).unsqueeze(1)


def _unweighable(weight: Tensor, target: Tensor, used: Tensor, reduce: str) -> Tensor:
    """bool []: weights [B, N] that are not finite, or that do not add up in a mean over slots ``used`` [B or 1, n]."""
    slots = used.shape[-1]
    merged = weight.float().masked_fill(target < 0, 0.0)
    wrong = ~merged.isfinite().all()
    if reduce == "sum":
        return wrong
    total = merged.new_zeros(len(target), slots + 1)
    total = total.scatter_add(1, target.masked_fill(target < 0, slots).clamp(max=slots), merged)
    return wrong | ((total[:, :slots] <= 0) & used).any()


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
        scores: real numbers [batch, N_current], higher = kept. Columns past a row's ``n_current`` are ignored.
        counts: tokens to keep per row.
        n_current: real tokens per row.

    Raises:
        StrategyError: for complex numbers.
    """
    import torch

    scores, width = rankable(scores), max(counts, default=0)
    if any(n != scores.shape[1] for n in n_current):
        limit = torch.tensor(n_current, device=scores.device).unsqueeze(1)
        scores = scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= limit, float("-inf"))
    doubtful = scores.isnan().any()
    if all(count == width for count in counts):
        kept, rest = (
            _highest(scores, width) if len(counts) > 1 and 0 < width < scores.shape[1] else _sorted(scores, width)
        )
        even = all(n == scores.shape[1] for n in n_current)
        return Selection(kept, counts, gone=rest if even else None, doubtful=doubtful)
    # argsort(stable) rather than topk: topk leaves the order of ties to the device.
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :width]
    limit = torch.tensor(counts, device=scores.device).unsqueeze(1)
    beyond = torch.arange(width, device=scores.device) >= limit
    order = torch.sort(order.masked_fill(beyond, torch.iinfo(torch.int64).max), dim=-1).values
    return Selection(order.masked_fill(beyond, -1), counts, doubtful=doubtful)
