"""``fastervlm``: what the vision tower's [CLS] token attends to, before the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, SpatialScorer, Stage
from tokentrim_strategies._keeping import Keeping, ReadsBlock

if TYPE_CHECKING:
    from torch import Tensor


class FasterVLM(ReadsBlock, Keeping, SpatialScorer):
    """Keep the visual tokens that [CLS] attends to most in one block of the vision tower; drop the rest at boundary 0.

    Score of visual token j, with A the softmax in that block, over all its keys, and H heads:
    ``(1/H) sum_h A[h, CLS, j]``. The weight of [CLS] on itself is left out and nothing is normalised again.

    Where the tower has no [CLS] (SigLIP), the score is the attention that j receives from all patches,
    ``(1/(H P)) sum_h sum_i A[h, i, j]``. That is the variant that VisPruner's authors use there; FasterVLM itself
    defines none, so call the result by that name.

    Follows the released code: the block whose output becomes the features (of LLaVA-1.5 the second to last, of
    LLaVA-OneVision and Qwen-VL the last), raster order kept. The code numbers positions after pruning (``positions:
    renumber``; our default keeps them). Several images share one ranking (ours); the code gives every crop of
    LLaVA-NeXT the same count, and projects dropped tokens, too.

    When it fails: it never reads the question, so it cannot know that a small or plain region matters; it picks
    high-norm background tokens that collect attention; without a [CLS], and on families other than LLaVA, users
    measured it below random. Text-guided methods do better on small text.

    Cost: one row per head in one block of the tower, O(P d); every layer of the language model then runs short.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt; the paper's are 432, 288, 144,
    58 and 29 of 576), ``block`` (block of the tower, negative = from the end; None = the features').

    ```bibtex
    @article{zhang2024fastervlm,
      title={[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster},
      author={Zhang, Qizhe and Cheng, Aosong and Lu, Ming and Zhuo, Zhiyong and Wang, Minqi and Cao, Jiajun and
              Guo, Shaobo and She, Qi and Zhang, Shanghang},
      journal={arXiv preprint arXiv:2412.01818},
      year={2024},
      note={arXiv:2412.01818}
    }
    ```
    """

    name: ClassVar[str] = "fastervlm"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS})

    block: int | None = Field(
        default=None,
        description="block of the vision tower whose attention counts, -1 = the last; None = that of the features",
    )

    def score(self, site: LayerSite) -> Tensor:
        """Attention from [CLS], mean over heads."""
        return site.vision_rows[:, 0].mean(dim=1)
