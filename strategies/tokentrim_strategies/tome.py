"""``tome``: patches merge with those most like them in every block of the vision tower."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import Field

from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    ReplacedBy,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StrategyError,
    TowerMerger,
    VisionShape,
    complaint,
    keep_count,
    top_selection,
)
from tokentrim_strategies._keeping import ShareOrNone

if TYPE_CHECKING:
    from torch import Tensor

Rounds = Literal["constant", "decreasing"]
_FROM_TO: Final = {"constant": (1, 1), "decreasing": (2, 0)}
"""Multiples of r that merge in the first and in the last block."""


class ToMe(TowerMerger, SpatialSelector):
    """Merge r pairs of patches between attention and MLP of each block of the vision tower; one token a group goes on.

    Keys k of the block, mean over heads. Tokens 0, 2, 4, ... each look for the one of 1, 3, 5, ... with the largest
    ``cos(k_i, k_j)``; the r best matched merge into theirs, by the mean weighted with the number of patches that each
    stands for: ``x = sum_i s_i x_i / sum_i s_i``. Attention counts a token s times:
    ``softmax(q k^T / sqrt(d) + log s)``. [CLS] merges with none. The next block deals even and odd anew over the
    others of the even tokens (where there is no [CLS] by falling cosine), then the odd ones.

    Of N patches, in L blocks up to that of the features, merge by ``rounds`` (half of what is left at most):

    - ``constant``: r in each block; of 576 patches in 23 blocks, 192 are left by r = 17 and a last round of 10;
    - ``decreasing``: ``floor(2r (L-1-i) / (L-1))`` in block i = 0, 1, ...

    ``r`` is the paper's parameter. Where a share is asked for, r is the smallest at which the schedule reaches it, and
    what is too many is taken off the last rounds (ours).

    Follows the released code in the rounds; it classifies images, and in front of a language model these are ours:
    merging stops at the block of the features, every patch then has its group's vector, the projector sees all of
    them, and of each group the token with the lowest raster number goes on (with its position; ``positions:
    renumber`` closes the gaps). Tiles merge among themselves, by the share that is kept of one picture. Where more
    groups reach the language model than the count (tiles whose padding was cut away; towers too short to halve as
    often as it takes) the smallest go; where fewer do, further tokens of groups stay.

    When it fails: merged patches have no one place, so text, counting and small objects suffer: published tables find
    it the weakest of its kind in front of a language model. It never reads the question. It needs a tower of CLIP's
    or SigLIP's make: Qwen-VL, pooled videos and images so large that their plane is resized are refused by name.

    Cost: in each block cosines of N/2 x N/2 tokens, O(N^2 d / 4); the tower itself runs with fewer tokens, which plans
    count under the first forward.

    Parameters: ``keep_ratio`` (share kept; tables of other papers have 192, 128 and 64 of 576) or ``r`` (pairs a block;
    the paper's are 8 and 16, of 196 patches in 12 and 24 blocks), ``rounds`` (the paper has both).

    ```bibtex
    @inproceedings{bolya2023tome,
      title={Token Merging: Your {ViT} But Faster},
      author={Bolya, Daniel and Fu, Cheng-Yang and Dai, Xiaoliang and Zhang, Peizhao and Feichtenhofer, Christoph and
              Hoffman, Judy},
      booktitle={International Conference on Learning Representations (ICLR)},
      year={2023},
      note={arXiv:2210.09461}
    }
    ```
    """

    name: ClassVar[str] = "tome"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TOWER_GROUPS})
    merges: ClassVar[bool] = True
    budget_knob: ClassVar[str | None] = "keep_ratio"

    keep_ratio: Annotated[ShareOrNone, ReplacedBy("r")] = Field(
        default=0.25, description="share of the visual tokens that is kept"
    )
    r: int | None = Field(
        default=None, ge=0, le=4096, description="pairs that merge in each block, in the mean, instead of keep_ratio"
    )
    rounds: Rounds = Field(default="constant", description="how many pairs merge in the blocks, first to last")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One token per group, of each picture where all are equally large.

        Raises:
            StrategyError: when ``r`` is given and the vision tower is unknown.
        """
        vision = shape.vision
        each = n_visual if vision is None or vision.varies or not vision.n_visual else vision.n_visual
        pictures, rest = divmod(n_visual, max(each, 1))
        share = self._share(vision)
        return Schedule.of({0: keep_count(share, n_visual if rest else each) * (1 if rest else pictures)})

    def _share(self, vision: VisionShape | None) -> float | Fraction:
        """Share of a picture's patches that is left."""
        if self.keep_ratio is not None:
            return self.keep_ratio
        patches = 0 if vision is None else vision.n_tokens - vision.cls
        if vision is None or not patches:
            raise StrategyError(
                complaint("r of strategy 'tome'", "meet a vision tower whose size is known", None, "give keep_ratio")
            )
        return Fraction(patches - sum(self.merges_in_tower(patches, vision.merging_blocks)), patches)

    def merges_in_tower(self, tokens: int, blocks: int) -> tuple[int, ...]:
        """``r`` in each block, or what leaves the share of ``tokens``."""
        if self.keep_ratio is None:
            return pairs_of(self.r or 0, 0, tokens, blocks, self.rounds)
        return pairs_to(keep_count(self.keep_ratio, tokens), tokens, blocks, self.rounds)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The first token of each group; the largest groups first, should there be more than may stay."""
        import torch

        groups = site.tower_groups.clamp(min=0)
        size = torch.zeros(groups.shape, dtype=torch.float32, device=site.device)
        size.scatter_add_(1, groups, site.valid.float())
        first = (groups == torch.arange(groups.shape[1], device=site.device)) & site.valid
        score = torch.where(first, size, 0.0)
        site.note(score, "is the number of patches in each group, at its first")
        return top_selection(score, tuple(count.tolist()), site.n_visual)


def pairs_per_block(r: int, blocks: int, rounds: Rounds) -> tuple[int, ...]:
    """Pairs that merge in each block, ``r`` in the mean; whole numbers by rounding down."""
    first, last = (r * times for times in _FROM_TO[rounds])
    steps = max(blocks - 1, 1)
    return tuple((first * (steps - i) + last * i) // steps for i in range(blocks))


def pairs_of(r: int, left: int, tokens: int, blocks: int, rounds: Rounds) -> tuple[int, ...]:
    """Pairs that merge in each block of ``tokens``: never more than half of them, nor beyond ``left``."""
    pairs = list[int]()
    for wanted in pairs_per_block(r, blocks, rounds):
        pairs.append(min(wanted, tokens // 2, max(0, tokens - left)))
        tokens -= pairs[-1]
    return tuple(pairs)


@lru_cache(maxsize=256)
def pairs_to(left: int, tokens: int, blocks: int, rounds: Rounds) -> tuple[int, ...]:
    """Pairs that merge in each block so that ``left`` of ``tokens`` are left, or as few as halving reaches."""
    found: tuple[int, ...] = (0,) * blocks
    for r in range(tokens + 1):
        found = pairs_of(r, left, tokens, blocks, rounds)
        if tokens - sum(found) <= left:
            break
    return found
