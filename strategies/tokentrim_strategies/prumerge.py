"""``prumerge``: the tokens that stand out in [CLS] attention, with their neighbours added to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from pydantic import Field, model_validator

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage, complaint
from tokentrim_strategies._keeping import Flag, Keeping, ShareOrNone

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Groups

_AT_ONCE: Final = 256
"""Kept tokens whose neighbours are sought together."""


class PruMerge(Keeping, SpatialSelector):
    """Keep the tokens that stand out in [CLS] attention, add to each its nearest ones, and sum up the rest in one more.

    - Attention of token j: ``a_j = softmax_j(q_CLS k_j / sqrt(C))`` in block ``block`` of the vision tower, its heads
      joined into one of width C, over all tokens, [CLS] included.
    - Kept: the K outliers, ``a_j > Q3 + 1.5 (Q3 - Q1)``, Q1 and Q3 the quartiles of a picture's a (at least one, ours).
    - ``plus`` (PruMerge+): besides, every ``floor(floor(N / K) / 3)``-th token of the raster but the last one.
    - Merged: ``x_i + sum of a_j x_j`` over the 32 tokens with the keys nearest to i's (cosine), kept ones among them,
      x what the tower made of a token before the projector. One more token is the sum of ``a_j x_j`` over all that are
      not kept.

    Follows the released code: attention of the last block, features of an earlier one; a sum, its division by the
    weights commented out (``reduce: mean`` divides). So without a budget **the count depends on the data**: about 5.5 %
    of LLaVA-1.5's tokens, 25 % with ``plus``. With ``keep_ratio`` or ``keep_count`` T tokens are kept, that one more
    among them: ``T - 1`` by attention; in ``plus`` the outliers, at most ``T - 1``, and the others evenly spaced among
    what is left (ours; EffiVLM-Bench cuts a progression off at the end). Nothing is merged where a budget keeps a whole
    picture (ours). The code orders tokens by attention and numbers them anew (``order: attention, positions: renumber``
    as in the presets); by default each stays where it is, and the one more stands at the strongest token that goes
    (ours). Where the tower has no [CLS], a is the mean over all queries, as in EffiVLM-Bench's port for SigLIP; on
    Qwen-VL projected features are merged. Every image, frame and tile decides for itself, with a part of a budget in
    proportion to its tokens (ours: the code takes one image).

    When it fails: it never reads the question, and the outliers are often high-norm background; audits find it below
    random tokens. Sums change the norms that the projector was trained on, which the authors mend by fine-tuning.

    Cost: one attention row, keys of one block, cosines of T x N tokens, T tokens through the projector; without a
    budget one read of the device.

    Parameters: ``plus``; ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt), neither by default;
    ``reduce``; ``order``; ``block`` (of the tower, negative = from the end).

    ```bibtex
    @inproceedings{shang2025prumerge,
      title={{LLaVA-PruMerge}: Adaptive Token Reduction for Efficient Large Multimodal Models},
      author={Shang, Yuzhang and Cai, Mu and Xu, Bingxin and Lee, Yong Jae and Yan, Yan},
      booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
      year={2025},
      note={arXiv:2403.15388}
    }
    ```
    """

    name: ClassVar[str] = "prumerge"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.VISION_WIDE, Need.VISION_KEYS, Need.VISION_HIDDEN, Need.HIDDEN, Need.GRID}
    )
    count_is_static: ClassVar[bool] = cast(bool, Flag["PruMerge"](False, lambda own: not own.adaptive))
    merges: ClassVar[bool] = True

    keep_ratio: ShareOrNone = Field(
        default=None, description="share of the visual tokens that is kept; without it and keep_count, as data demand"
    )
    plus: bool = Field(default=False, description="whether evenly spaced tokens are kept besides: PruMerge+")
    reduce: Literal["sum", "mean"] = Field(
        default="sum", description="whether weighted neighbours are added up, or their weighted mean is added"
    )
    order: Literal["raster", "attention"] = Field(
        default="raster", description="whether tokens stay in order, or go on by falling attention"
    )
    block: int = Field(default=-1, description="block of the vision tower that is read, -1 = the last")

    @model_validator(mode="before")
    @classmethod
    def _one_of_the_two(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("keep_ratio") is not None and data.get("keep_count") is not None:
            given = {key: data[key] for key in ("keep_ratio", "keep_count")}
            must = "be keep_ratio, keep_count, or neither"
            raise ValueError(complaint("the budget of strategy 'prumerge'", must, given, "set one of the two"))
        return data

    @model_validator(mode="after")
    def _consistent(self) -> PruMerge:
        if self.order == "attention" and self.positions != "renumber":
            what, must = "order of strategy 'prumerge'", "be 'raster' where positions are kept"
            raise ValueError(complaint(what, must, self.order, "set positions: renumber as well"))
        return self

    @property
    def adaptive(self) -> bool:
        """Whether outliers alone say how many tokens are kept."""
        return self.keep_ratio is None and self.keep_count is None

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One cut; everything, where outliers say how much stays."""
        return Schedule.of({0: n_visual}) if self.adaptive else super().schedule(shape, n_visual)

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """The one block."""
        return (self.block,)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Outliers, evenly spaced tokens, and one more, with what is merged into them."""
        import torch

        from tokentrim import Groups, pad_rows

        counts: tuple[int, ...] = tuple(count.tolist())
        pictures, place = Groups.pictures(site.grid, site.valid), torch.arange(site.valid.shape[1], device=site.device)
        score = site.vision_wide[:, 0, 0].float().masked_fill(~site.valid, 0.0)
        site.note(score, "chooses outliers; others are evenly spaced, or merge by their keys")
        budget = None if self.adaptive else pictures.share(counts)
        chosen, spaced = self._chosen(site, pictures, score, budget)
        left = site.valid & ~chosen & ~spaced
        if budget is not None:
            left = left & (budget > 0)
        extra = left & (pictures.rank(torch.where(left, score, -1.0)) == 0)
        stays = chosen | spaced | extra
        if self.adaptive:
            counts = tuple(stays.sum(dim=1).tolist())
        line, beyond = place.expand_as(left), 4 * left.shape[1]
        if self.order == "attention":
            turn = pictures.rank(-place.expand_as(left))
            within = torch.where(chosen, pictures.rank(score), pictures.size + torch.where(extra, pictures.size, turn))
            line = 3 * pictures.before + within
        kept = pad_rows(line.masked_fill(~stays, beyond).argsort(dim=1)[:, : max(counts, default=0)], counts)
        whole = torch.zeros_like(left) if budget is None else budget >= pictures.size
        features = self._merged(site, pictures, score, kept, left, extra, whole)
        return Selection(kept, counts, features=features, behind=counts if self.order == "attention" else None)

    def _chosen(self, site: LayerSite, pictures: Groups, score: Tensor, budget: Tensor | None) -> tuple[Tensor, Tensor]:
        """bool [B, N] each: kept for their attention, and kept for their places."""
        import torch

        place = torch.arange(score.shape[1], device=site.device).expand_as(score)
        rank, size = pictures.rank(score), pictures.size
        outlier = site.valid & ((score > self._bound(pictures, score)) | (rank == 0))
        if budget is None:
            chosen, turn = outlier, pictures.rank(-place)
            stride = (size // pictures.count(chosen).clamp(min=1) // 3).clamp(min=1)
            spaced = site.valid & ~chosen & (turn % stride == 0) & (turn < size - 1)
            return chosen, spaced & self.plus
        whole = budget >= size
        room = torch.where(whole, size, budget - 1)  # one is for the sum of the rest
        chosen = site.valid & (rank < room)
        if self.plus:
            chosen = chosen & (outlier | whole)
        rest, taken = site.valid & ~chosen, pictures.count(chosen)
        turn, spare = pictures.rank(torch.where(rest, -place, -score.shape[1])), (room - taken).clamp(min=0)
        among = (size - taken).clamp(min=1)
        return chosen, rest & ((turn + 1) * spare // among > turn * spare // among)

    @staticmethod
    def _bound(pictures: Groups, score: Tensor) -> Tensor:
        """[B, N]: ``Q3 + 1.5 (Q3 - Q1)`` of each token's own picture, quartiles interpolated linearly."""
        last = (pictures.size - 1).clamp(min=0)

        def quartile(number: int) -> Tensor:
            quarters = number * last
            low, part = quarters // 4, (quarters % 4).float() / 4
            below = pictures.at_rank(score, last - low)
            return below + part * (pictures.at_rank(score, (last - low - 1).clamp(min=0)) - below)

        return quartile(3) + 1.5 * (quartile(3) - quartile(1))

    def _merged(
        self, site: LayerSite, pictures: Groups, score: Tensor, kept: Tensor, left: Tensor, extra: Tensor,
        whole: Tensor,
    ) -> Tensor:  # fmt: skip
        """[B, n, D]: the kept tokens with their neighbours; at ``extra`` the sum of all that is ``left``."""
        import torch

        from tokentrim import rows_at

        vectors, place = site.vision_hidden.float(), torch.arange(score.shape[1], device=site.device)
        keys = torch.nn.functional.normalize(site.vision_keys[:, 0].float(), dim=-1)
        slots, made = kept.clamp(min=0), [vectors[:, :0]]
        for index in slots.split(_AT_ONCE, dim=1):
            same = pictures.before.gather(1, index).unsqueeze(2) == pictures.before.unsqueeze(1)
            other = same & (index.unsqueeze(2) != place)
            cosines = torch.matmul(rows_at(keys, index), keys.transpose(1, 2)).masked_fill(~other, float("-inf"))
            near = cosines.argsort(dim=2, descending=True, stable=True)[..., :32]
            joins = torch.zeros_like(other).scatter(2, near, True) & other
            sums = extra.gather(1, index).unsqueeze(2)
            weight = score.unsqueeze(1) * torch.where(sums, left.unsqueeze(1) & same, joins)
            if self.reduce == "mean":
                weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
            made.append(rows_at(vectors, index).masked_fill(sums, 0.0) + torch.matmul(weight, vectors))
        as_it_is = whole.gather(1, slots).unsqueeze(2)
        return torch.where(as_it_is, rows_at(site.hidden, slots), site.project(torch.cat(made, dim=1)))
