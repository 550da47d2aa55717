"""``hiprune``: what a middle block of the vision tower looks at, with its surroundings, and what a deep one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Keeping, Share

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Groups


class HiPrune(Keeping, SpatialSelector):
    """Keep anchors with their four neighbours, which a middle block attends to, and registers, which a deep one does.

    With ``m_j = (1/(H Q)) sum_h sum_i A[h, i, j]``, what token j receives from all Q queries of a block of the vision
    tower, [CLS] among them, of T tokens that are kept:

    - anchors: the ``round(alpha T / 5)`` tokens (half to even) with the highest m in block ``middle``;
    - buffers: their neighbours to the left and right, above and below;
    - registers: of all others those with the highest m in block ``deep``, until there are T.

    Follows the released code, in which neighbours are numbers of the raster: to the right of a row's end lies the next
    row's start, and what would lie above the first row or below the last is the first or last token
    (``borders: released``; ``clipped`` leaves both out, ours). Its deep block is the one that makes the features, of
    LLaVA-1.5 the second to last, of Qwen2.5-VL the last. Its middle block is a number of each model: the 9th of CLIP's
    24, which is the default's three eighths of the depth, and the 16th of Qwen2.5-VL's 32 (``middle: 15``). The code
    for Qwen rounds its share to the nearest number; here ``keep_ratio`` is rounded as everywhere. LLaVA's code numbers
    positions after pruning (``positions: renumber``; our default keeps them, as the code for Qwen does). Every image,
    frame and tile decides for itself, with a part of T in proportion to its tokens, as the code does with tiles of
    equal size; the rows of a tile that has lost padding are as long as what is left of them (ours).

    When it fails: it never reads the question. Registers are high-norm background tokens; papers rank it below
    VisionZip at 64 of 576 tokens and above it at 192.

    Cost: what each patch receives in two blocks of the tower, O(P^2 d) in blocks of queries, without a map of them.

    Parameters: ``keep_ratio`` (share kept; of Qwen2.5-VL .334, .223 and .112) or ``keep_count`` (tokens kept per
    prompt, T; the paper's are 192, 128 and 64 of 576), ``alpha`` (share of T for anchors and buffers), ``middle`` and
    ``deep`` (blocks of the tower, from 0, negative = from the end), ``borders``.

    ```bibtex
    @article{liu2025hiprune,
      title={{HiPrune}: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models},
      author={Liu, Jizhihui and Du, Feiyi and Zhu, Guangdao and Lian, Niu and Li, Jun and Chen, Bin},
      journal={arXiv preprint arXiv:2508.00553},
      year={2025},
      note={arXiv:2508.00553}
    }
    ```
    """

    name: ClassVar[str] = "hiprune"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_COLUMNS, Need.GRID})

    alpha: Share = Field(default=0.1, description="share of the kept tokens for anchors and their neighbours")
    middle: int | None = Field(
        default=None, description="block of the vision tower that finds anchors; None = at three eighths of its depth"
    )
    deep: int | None = Field(
        default=None, description="block that finds registers, -1 = the last; None = that of the features"
    )
    borders: Literal["released", "clipped"] = Field(
        default="released", description="neighbours beyond a row's end: as the code counts on, or none"
    )

    def vision_blocks_of(self, features: int, depth: int) -> tuple[int, ...]:
        """The middle one and the deep one."""
        middle = max(3 * depth // 8 - 1, 0) if self.middle is None else self.middle
        return middle, features if self.deep is None else self.deep

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Anchors before buffers before registers, as many as each picture is given."""
        import torch

        from tokentrim import Groups, grouped_order

        middle, deep = site.vision_columns.mean(dim=2).unbind(dim=1)
        site.note(middle, "chooses anchors, whose neighbours stay with them")
        site.note(deep, "chooses registers among the others")
        pictures, counts = Groups.pictures(site.grid, site.valid), count.tolist()
        budget = pictures.share(counts)
        anchor = site.valid & (pictures.rank(middle) < (self.alpha * budget.double() / 5).round().long())
        tier = torch.where(anchor, 0, torch.where(self._around(site, pictures, anchor), 1, 2))
        # In each picture by tier, and in a tier by attention.
        place = grouped_order(torch.where(anchor, middle, deep), 3 * pictures.before + tier)
        return Selection.from_mask(site.valid & (place - pictures.before < budget), tuple(counts))

    def _around(self, site: LayerSite, pictures: Groups, anchor: Tensor) -> Tensor:
        """bool [B, N]: the neighbours of the anchors in their own picture."""
        import torch

        order = pictures.before.argsort(dim=1, stable=True)  # picture after picture, each in raster order
        number = torch.arange(order.shape[1], device=site.device).expand_as(order)
        turn = torch.empty_like(order).scatter(1, order, number) - pictures.before
        last, row = (pictures.size - 1).clamp(min=0), site.grid.row
        width = pictures.within(row, site.valid).size
        marks = torch.zeros_like(order)
        for step, beside in ((-1, True), (1, True), (-width, False), (width, False)):
            there = turn + step
            index = order.gather(1, pictures.before + there.clamp(min=0).minimum(last))
            good = anchor
            if self.borders == "clipped":
                good = anchor & (there >= 0) & (there <= last) & ((row.gather(1, index) == row) | (not beside))
            marks = marks.scatter_add(1, index, good.long())
        return (marks > 0) & site.valid
