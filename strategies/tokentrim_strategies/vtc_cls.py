"""``vtc-cls``: [CLS] attention of several blocks of the vision tower together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, SpatialScorer, Stage
from tokentrim_strategies._keeping import Keeping

if TYPE_CHECKING:
    from torch import Tensor


class VTCCLS(Keeping, SpatialScorer):
    """Keep the visual tokens that [CLS] attends to most over the last blocks of the vision tower; drop the rest.

    Score of visual token j, with A_l the softmax in block l, H heads, and K blocks that end at block ``last``, by
    default the one whose output becomes the features:
    ``sum_l (1/H) sum_h A_l[h, CLS, j]``. Acts at boundary 0. With one block it is FasterVLM.

    Follows the paper in averaging K = 3 blocks up to the features' (of LLaVA-1.5 the second to last); the sum ranks
    like the mean. The released command line's own default starts at block 16 of 24 and so takes seven: ``blocks: 7`` is
    that. The code projects only what is kept, which gives the same vectors, and numbers positions after pruning
    (``positions: renumber``; our default keeps them). It takes one image; several images share one ranking here (ours).
    Where the tower has no [CLS], the attention that j receives from all patches takes its place (ours).

    When it fails: as any method that never reads the question, and as FasterVLM: background tokens that collect
    attention do so in neighbouring blocks as well, so the ensemble steadies the ranking but does not remove them.

    Cost: one row per head in each of the blocks, O(K P d).

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt; the paper's are 256, 128 and 64
    of 576), ``blocks`` (K), ``last`` (the last of them, from the end: -2 = second to last; None = the features').

    ```bibtex
    @article{wang2024vtccls,
      title={{[CLS]} Token Tells Everything Needed for Training-free Efficient {MLLMs}},
      author={Wang, Ao and Sun, Fengyuan and Chen, Hui and Lin, Zijia and Han, Jungong and Ding, Guiguang},
      journal={arXiv preprint arXiv:2412.05819},
      year={2024},
      note={arXiv:2412.05819}
    }
    ```
    """

    name: ClassVar[str] = "vtc-cls"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS})

    blocks: int = Field(default=3, ge=1, description="blocks of the vision tower whose attention counts")
    last: int | None = Field(
        default=None, le=-1, description="the last of these blocks, counted from the end; None = that of the features"
    )

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """``blocks`` neighbours that end at ``last``."""
        last = features if self.last is None else self.last
        return tuple(range(last - self.blocks + 1, last + 1))

    def score(self, site: LayerSite) -> Tensor:
        """Attention from [CLS], mean over heads, summed over blocks."""
        return site.vision_rows.mean(dim=2).sum(dim=1)
