"""``sparsevlm``: visual tokens rated by the words that look at them, in a few cuts, the pruned ones recycled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from pydantic import Field, model_validator

from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    PromptInfo,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StrategyError,
    complaint,
    keep_count,
    unknown_name,
)
from tokentrim_strategies._keeping import Flag, ShareOrNone, check_boundary
from tokentrim_strategies._stages import between

if TYPE_CHECKING:
    from torch import Tensor

Version = Literal["paper", "v1.0", "v1.5", "plus"]
Tokens = Literal[192, 128, 96, 64]

_OF: Final = 576, 32
"""Visual tokens and decoder layers that the published numbers are for."""
_CUTS: Final = (3, 7, 16)
_TOP: Final[Mapping[str, Mapping[int, tuple[int, ...]]]] = MappingProxyType(
    {
        "v1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
        "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
    }
)
"""Tokens kept by score at each cut, before recycling, as the code's tables have them."""
_RANK: Final = MappingProxyType({192: (13.5, 0.0), 128: (9.0, 6.0), 64: (0.8, 0.0)})
"""v1.0: tokens kept per unit of rank, and on top of it."""
_AS_RELEASED: Final = MappingProxyType({"merged": "behind", "positions": "renumber"})

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        **{f"v1.0-{tokens}": {"version": "v1.0", "tokens": tokens, **_AS_RELEASED} for tokens in _RANK},
        **{f"v1.5-{tokens}": {"tokens": tokens, **_AS_RELEASED} for tokens in _TOP["v1.5"]},
        **{f"plus-{tokens}": {"version": "plus", "tokens": tokens} for tokens in _TOP["plus"]},
    }
)
"""The published configurations, position ids and order included, by version and nominal number of tokens."""


@dataclass
class _Prompt:
    """What one prompt remembers: visual tokens per row at first, and bool [B, T], the text tokens that rate."""

    n_visual: tuple[int, ...]
    raters: Tensor | None = None


class SparseVLM(SpatialSelector):
    """Drop visual tokens at three or four boundaries by the attention of relevant words; merge some of the dropped.

    *Raters.* Once per prompt, on input embeddings: ``M = softmax over text of H_visual H_text^T``, r its mean over
    visual tokens; the text tokens behind the image with ``r_i > mean(r)`` rate (``>=`` in ``paper``; all, where none
    is above, ours). *Score* of visual token j at boundary b: the mean over raters i and heads of ``A[h, i, j]``, A the
    softmax in layer b-1. *Recycling*: of the p tokens dropped at a cut, the ``floor(0.3 p) + 1`` with the highest
    scores are clustered by density peaks (:func:`tokentrim.density_peaks` on hidden states, k = C) into
    ``C = floor(that / 10) + 1`` tokens, which go on.

    ====== ============================================ ============== =========================================
    version tokens kept by score at a cut, of V           boundaries     the rest
    ====== ============================================ ============== =========================================
    paper  ``V - floor(scale (V - rank P))``             3, 7, 16       assigned by cosine, merged by sum
    v1.0   ``min(floor(scale rank P + bias), V - 1)``    3, 7, 16, 20   assigned by distance, merged by mean
    v1.5   fixed (below)                                 3, 7, 16       as v1.0; today's main code
    plus   fixed (below)                                 3, 7, 16       no recycling; corrected score, fewer heads
    ====== ============================================ ============== =========================================

    P is the raters x visual attention, mean over heads; a cut with nothing to drop is left out. ``plus``
    (SparseVLM+) divides each attention by ``g(d) = 2 sum_m cos(d theta_m) / sqrt(head_dim)``, d the distance from the
    rater, because rotary embeddings favour near tokens, and averages the 14 heads with the most attention from
    raters to visual tokens. For head_dim 128 and base 10000, g falls from 11.3 at distance 0 to 2.6 at 576 and is
    first negative at 1707. Dividing by a negative g turns the ranking over, so prompts that reach such a distance are
    refused (ours).

    *Counts.* Fixed versions have tables for nominal 192, 128, 96 and 64 of 576 tokens, v1.5 300/200/110,
    303/110/36, 238/48/26 and 66/30/17, plus 300/200/118, 238/108/60, 246/54/28 and 66/34/20. Counted as every method
    here (each layer by what it processes, recycled tokens included), they cost 206.5, 145.4, 114.1 and 82.2 tokens
    per layer on 32 layers (plus: 206.8, 144.1, 113.9, 81.8), because the code counts a pruning layer by what it
    leaves. Other numbers of visual tokens scale the tables; other depths scale the boundaries, floor(b L / 32) (both
    ours: the code has fixed layers). ``keep_ratio`` interpolates linearly between the tables by nominal share, and to
    everything at 1, lowered where a table keeps more at a cut than the next larger one does, so that a larger budget
    never keeps less (ours). In ``paper`` and ``v1.0`` the count depends on the data: the schedule is an upper bound,
    everything by default, or what ``keep_ratio`` says, which then caps the count (ours).

    Where paper and code differ, ``paper`` is the paper (its scale per budget was not available to us: 0.5 is ours; so
    is k = C, which it leaves free), the others are releases of the code. v1.0 and v1.5 put a cut's merged tokens behind
    the image, best cluster first, and number positions anew (``merged: behind, positions: renumber``, as in the
    presets); our default leaves each in its cluster's centre, under that one's id. Ours: of several images, the last
    one is meant, and the text behind it rates. Distances of ``plus`` count visual and text tokens. Noise, which parts
    equal densities, is a function of seed and image here; the code draws it unseeded.

    When it fails: raters are chosen by embeddings without context, so function words rate as well; merged tokens blur
    what they are made of; small text. Users find the released code slower than no pruning; the cost here is the
    attention rows of all text tokens at each cut, O(T N d), clustering, O(p^2 D), and in ``paper`` and ``v1.0`` a
    singular value decomposition and one read of the device per cut.

    Parameters: ``version``; ``tokens``, a published table (192 by default), or ``keep_ratio``, nominal share kept;
    ``scale`` and ``bias`` of the rank rules (``paper``: share dropped of V - rank; ``v1.0``: instead of ``tokens``);
    ``boundaries``; ``merged``; ``heads`` and ``rope_base`` (of the model) in ``plus``; ``seed``.

    ```bibtex
    @inproceedings{zhang2025sparsevlm,
      title={{SparseVLM}: Visual Token Sparsification for Efficient Vision-Language Model Inference},
      author={Zhang, Yuan and Fan, Chun-Kai and Ma, Junpeng and Zheng, Wenzhao and Huang, Tao and Cheng, Kuan and
              Gudovskiy, Denis and Okuno, Tomoyuki and Nakata, Yohei and Keutzer, Kurt and Zhang, Shanghang},
      booktitle={International Conference on Machine Learning (ICML)},
      year={2025},
      note={arXiv:2410.04417}
    }
    ```
    """

    name: ClassVar[str] = "sparsevlm"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.TEXT_ROWS, Need.TEXT_EMBEDS, Need.FEATURES, Need.HIDDEN, Need.RANDOM}
    )
    count_is_static: ClassVar[bool] = cast(bool, Flag["SparseVLM"](False, lambda own: own.version in ("v1.5", "plus")))
    merges: ClassVar[bool] = cast(bool, Flag["SparseVLM"](True, lambda own: own.version != "plus"))
    budget_knob: ClassVar[str | None] = "keep_ratio"

    version: Version = Field(default="v1.5", description="the paper, or a release of its code")
    tokens: Tokens | None = Field(
        default=None, description="published table, by its nominal tokens per layer of 576; 192 where nothing is given"
    )
    keep_ratio: ShareOrNone = Field(default=None, description="nominal share kept, instead of a published table")
    scale: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="factor of the rank rule of paper (0.5) and v1.0"
    )
    bias: float | None = Field(default=None, allow_inf_nan=False, description="tokens that v1.0 keeps beside it")
    boundaries: tuple[int, ...] | None = Field(
        default=None, description="where tokens go; by default 3, 7 and 16 (v1.0: and 20) of 32 layers, scaled"
    )
    heads: int = Field(default=14, ge=1, description="heads that count in plus (all, where the model has fewer)")
    rope_base: float = Field(
        default=10000.0, gt=1, allow_inf_nan=False, description="base of the model's rotary embedding, for plus"
    )
    merged: Literal["centre", "behind"] = Field(
        default="centre", description="where merged tokens go on: in their centre's place, or behind the image"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the noise that parts equal densities")

    @model_validator(mode="after")
    def _consistent(self) -> SparseVLM:
        """Refuse parameters that the version does not read."""
        ranked, table = self.version in ("paper", "v1.0"), self.tokens is not None
        cuts, most = list(self.boundaries or ()), len(self._cuts)
        ascend = len(cuts) == most and cuts == sorted({*cuts}) and min(cuts) >= 1
        wrong = (
            ("tokens", table and self.version == "paper", "give scale: the paper has no table"),
            ("tokens", self.tokens == 96 and self.version == "v1.0", f"choose one of {sorted(_RANK)}"),
            ("bias", self.bias is not None and self.version != "v1.0", "leave it out: only v1.0 has one"),
            ("scale", self.scale is not None and not ranked, "leave it out: only paper and v1.0 look at a rank"),
            ("tokens", table and self.scale is not None, "set either tokens or scale"),
            ("tokens", table and self.keep_ratio is not None and not ranked, "set either tokens or keep_ratio"),
            ("boundaries", self.boundaries is not None and not ascend, f"give {most} ascending numbers from 1 on"),
            ("merged", self.merged == "behind" and not self.merges, "leave it out: plus merges nothing"),
            ("merged", self.merged == "behind" and self.positions != "renumber", "set positions: renumber as well"),
        )
        for parameter, is_wrong, hint in wrong:
            if is_wrong:
                # A ValueError, so that pydantic reports it with the place in the configuration.
                what = f"{parameter} of strategy 'sparsevlm'"
                must = f"fit version {self.version!r} with positions {self.positions!r}"
                raise ValueError(complaint(what, must, getattr(self, parameter), hint))
        return self

    @classmethod
    def preset(cls, name: str) -> SparseVLM:
        """A published configuration, such as ``"v1.5-192"``."""
        if name not in PRESETS:
            raise unknown_name("preset of strategy 'sparsevlm'", name, PRESETS)
        return cls(**PRESETS[name])

    def begin(self, prompt: PromptInfo) -> _Prompt:
        """Raters, once they are known."""
        return _Prompt(prompt.n_visual)

    def needed(self) -> frozenset[Need]:
        """Without what recycling reads, in ``plus``."""
        return self.needs if self.merges else self.needs - {Need.HIDDEN, Need.RANDOM}

    # ------------------------------------------------------------------ counts

    @property
    def _cuts(self) -> tuple[int, ...]:
        """Published boundaries of the version, of 32 layers."""
        return (*_CUTS, 20) if self.version == "v1.0" else _CUTS

    def cuts(self, shape: ModelShape) -> tuple[int, ...]:
        """The boundaries in a model: as configured, or the published ones scaled to its depth."""
        found = list(self.boundaries or ())
        if not found:
            for cut in self._cuts:
                found.append(max(cut * shape.n_layers // _OF[1], found[-1] + 1 if found else 1))
        check_boundary(self, "boundaries", found[-1], shape)
        return tuple(found)

    def _shares(self) -> list[Fraction]:
        """Share of the visual tokens that each cut keeps by score (in rank versions: at most)."""
        tables = _TOP["plus" if self.version == "plus" else "v1.5"]
        if self.keep_ratio is None:
            if not self.count_is_static:
                return [Fraction(1)] * len(self._cuts)
            return [Fraction(top, _OF[0]) for top in tables[self.tokens or 192]]
        knots = {_OF[0]: (_OF[0],) * 3}
        for tokens, tops in sorted(tables.items(), reverse=True):
            above = knots[min(knots)]
            knots[tokens] = tuple(map(min, tops, above))
        knots[0] = (0, 0, 0)
        shares = [top / _OF[0] for top in between(knots, Fraction(str(self.keep_ratio)) * _OF[0])]
        return shares + shares[-1:] * (len(self._cuts) - len(shares))

    def _recycled(self, pruned: int) -> int:
        """Tokens that the ``pruned`` ones of a cut are merged into."""
        return _candidates(pruned) // 10 + 1 if self.merges and pruned else 0

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Kept by score and recycled, cut after cut."""
        if self.version == "plus":
            self._gravity(shape.head_dim, n_visual)  # the first word behind the image is as far from its first token
        counts, current = dict[int, int](), n_visual
        for boundary, share in zip(self.cuts(shape), self._shares(), strict=True):
            top = min(keep_count(share, n_visual), current)
            current = top + self._recycled(current - top)
            counts[boundary] = current
        return Schedule.of(counts)

    # ------------------------------------------------------------------ the decision

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The highest scores; of the others, the best ones merged into cluster centres."""
        import torch

        from tokentrim import rows_at

        state: _Prompt = site.state
        if not max(site.n_visual, default=0):
            return Selection.everything(site.n_visual, site.device)
        rows, real = site.text_rows
        rows = rows.masked_fill(~(real[:, None, :, None] & site.valid[:, None, None, :]), 0.0)
        # Causal attention is zero exactly where a token lies behind: so the first word that sees j stands after it.
        unseen = (rows.sum(dim=1) == 0).long().cumprod(dim=1).sum(dim=1)  # [B, N]: text tokens in front of each
        if state.raters is None:
            behind = unseen.masked_fill(~site.valid, 0).amax(dim=1, keepdim=True)
            after = real & (torch.arange(real.shape[1], device=site.device) >= behind)
            state.raters = self._raters(site, after)
        state.raters = state.raters.to(site.device)  # boundaries may lie on several devices
        if self.version == "plus":
            rows = rows / self._distances(site, unseen, rows.shape[2]).unsqueeze(1)
        weight = state.raters.unsqueeze(1).to(rows.dtype)  # [B, 1, T]
        by_head = torch.matmul(weight.unsqueeze(1), rows).squeeze(2)  # [B, H, N]: sum over raters
        if self.version == "plus":
            busiest = by_head.sum(dim=2).argsort(dim=1, descending=True, stable=True)[:, : self.heads]
            by_head = rows_at(by_head, busiest)
        scores = by_head.mean(dim=1)  # the number of raters is the same for all tokens of a row
        site.note(scores, "the highest stay; the best of the others are merged into cluster centres")
        return self._keep(site, scores, *self._counts(site, count, rows, weight))

    def _raters(self, site: LayerSite, after: Tensor) -> Tensor:
        """bool [B, T]: the text tokens of ``after`` that are relevant to the image."""
        import torch

        text, _ = site.text_embeds
        relevance = torch.matmul(site.features.float(), text.float().transpose(1, 2))  # [B, N, T]
        relevance = relevance.masked_fill(~after.unsqueeze(1), float("-inf")).softmax(dim=-1).nan_to_num(0.0)
        relevance = relevance.masked_fill(~site.valid.unsqueeze(-1), 0.0).sum(dim=1)
        # The sum over a row's visual tokens compares as their mean does.
        mean = relevance.sum(dim=1, keepdim=True) / after.sum(dim=1, keepdim=True).clamp(min=1)
        chosen = after & (relevance >= mean if self.version == "paper" else relevance > mean)
        return torch.where(chosen.any(dim=1, keepdim=True), chosen, after)

    def _counts(self, site: LayerSite, count: Tensor, rows: Tensor, weight: Tensor) -> tuple[list[int], list[int]]:
        """(kept by score, recycled) of each row."""
        state: _Prompt = site.state
        share = self._shares()[self.cuts(site.shape).index(site.boundary)]
        tops = [min(keep_count(share, n), now) for n, now in zip(state.n_visual, site.n_visual, strict=True)]
        if not self.count_is_static:
            ranks = self._ranks(site, rows.mean(dim=1) * weight.transpose(1, 2))
            tops = list(map(min, tops, map(self._by_rank, ranks, site.n_visual)))
            return tops, [self._recycled(n - top) for top, n in zip(tops, site.n_visual, strict=True)]
        # A part before this one may have left fewer than planned: the count rules, and recycling gives way.
        wanted: list[int] = count.tolist()
        tops = [
            now if kept == now else min(top, kept) for top, kept, now in zip(tops, wanted, site.n_visual, strict=True)
        ]
        return tops, [kept - top for kept, top in zip(wanted, tops, strict=True)]

    def _by_rank(self, rank: int, n: int) -> int:
        """Tokens of ``n`` that the version's rank rule keeps."""
        if rank == n:
            return n
        if self.version == "paper":
            return max(0, n - math.floor((0.5 if self.scale is None else self.scale) * (n - rank)))
        scale, bias = _RANK[self.tokens or 192] if self.scale is None else (self.scale, 0.0)
        return max(0, min(int(rank * scale + (bias if self.bias is None else self.bias)), n - 1))

    def _ranks(self, site: LayerSite, rated: Tensor) -> list[int]:
        """Numerical rank of each row's P: ``rated`` [B, T, N], zero where no rater stands.

        The tolerance is that of ``torch.linalg.matrix_rank`` for raters x visual tokens, whatever the padding.
        """
        import torch

        singular = torch.linalg.svdvals(rated.float())
        raters: Tensor = site.state.raters.sum(dim=1)
        longest = torch.maximum(raters, torch.tensor(site.n_visual, device=site.device))
        tolerance = singular.amax(dim=1) * longest * torch.finfo(singular.dtype).eps
        return [int(rank) for rank in (singular > tolerance.unsqueeze(1)).sum(dim=1).tolist()]

    def _keep(self, site: LayerSite, scores: Tensor, tops: list[int], recycled: list[int]) -> Selection:
        """The ``tops`` highest scores, and the best of the others merged into ``recycled`` clusters."""
        import torch

        from tokentrim import density_peaks, merge_into, rows_at, written

        line = torch.arange(scores.shape[1], device=site.device)
        order = scores.masked_fill(~site.valid, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        first = torch.tensor(tops, device=site.device).unsqueeze(1)
        mask = torch.zeros_like(site.valid).scatter(1, order, line < first)
        counts = tuple(top + new for top, new in zip(tops, recycled, strict=True))
        ragged = zip(site.n_visual, tops, recycled, strict=True)
        sizes = [max(_candidates(n - top), new) if new else 0 for n, top, new in ragged]
        if not any(sizes):
            return Selection.from_mask(mask, counts)
        places = torch.arange(max(sizes), device=site.device) + first
        pool = order.gather(1, places.clamp(max=len(line) - 1))  # [B, R]: what is recycled, best first
        own, centres = density_peaks(
            rows_at(site.hidden, pool),
            sizes,
            clusters=recycled,
            neighbours=recycled,
            noise=site.random(self.seed, salt=site.boundary).gather(1, pool),
            assign="cosine" if self.version == "paper" else "distance",
        )
        # Token numbers; -1 in padding.
        centre, centres = (pool.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1) for at in (own, centres))
        into, behind = written(torch.where(mask, line, -1), pool.masked_fill(own < 0, -1), centre), None
        if self.merged == "behind":
            last = (torch.arange(centres.shape[1], device=site.device) + len(line)).expand_as(centres)
            line, behind = written(line.expand_as(into), centres, last), tuple(recycled)
        reduce = "sum" if self.version == "paper" else "mean"
        return merge_into(into, counts, line.expand_as(into), reduce=reduce, behind=behind)

    # ------------------------------------------------------------------ plus

    def _distances(self, site: LayerSite, unseen: Tensor, n_text: int) -> Tensor:
        """[B, T, N]: g at the distance of each text token behind the image from each visual token."""
        import torch

        state: _Prompt = site.state
        if self.positions == "keep":
            before, ids = state.n_visual, site.ids
        else:
            before, ids = site.n_visual, torch.arange(site.ids.shape[1], device=site.device).expand_as(site.ids)
        gravity = self._gravity(site.shape.head_dim, max(before) + n_text - 1).to(site.device)
        text = torch.arange(n_text, device=site.device) + torch.tensor(before, device=site.device).unsqueeze(1)
        distance = text.unsqueeze(2) - (ids + unseen).unsqueeze(1)
        return gravity[distance.clamp(0, len(gravity) - 1)]

    def _gravity(self, head_dim: int, farthest: int) -> Tensor:
        """float32 [farthest + 1]: g at every distance."""
        return _gravity(head_dim, self.rope_base, farthest)


def _candidates(pruned: int) -> int:
    """Tokens of the ``pruned`` ones that are recycled: three tenths and one."""
    return 3 * pruned // 10 + 1


@lru_cache(maxsize=64)
def _gravity(head_dim: int, base: float, farthest: int) -> Tensor:
    """float32 [farthest + 1] on the host: g at every distance; refused where it is not positive throughout."""
    import torch

    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    distance = torch.arange(farthest + 1, dtype=torch.float64).unsqueeze(1)
    table = (2 * torch.cos(distance * frequency).sum(dim=1) / head_dim**0.5).float()
    lowest = float(table.min())
    if lowest <= 0:
        raise StrategyError(
            complaint(
                "the attention correction of strategy 'sparsevlm', version 'plus',",
                f"stay above 0 over the prompt's distances 0..{farthest}",
                f"{lowest:.3g} at {int(table.argmin())}",
                "use version v1.5, or fewer visual tokens: dividing by it would turn the ranking over",
            )
        )
    return table
