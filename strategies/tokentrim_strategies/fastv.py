"""``fastv``: one cut after layer K, by what the last prompt token attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, Need, SpatialScorer, Stage
from tokentrim_strategies._keeping import Keeping, RatioOrNone

if TYPE_CHECKING:
    from torch import Tensor


class FastV(Keeping, SpatialScorer):
    """Keep the visual tokens that get the most attention in layer k-1; drop the others before layer k.

    Score of visual token j, with A the softmax over all keys in layer k-1, H heads and T prompt tokens:

    - ``query="last"``: ``(1/H) sum_h A[h, T-1, j]``, the row of the last prompt token;
    - ``query="all"``: ``(1/(H T)) sum_h sum_i A[h, i, j]``, what j receives from all queries.

    Paper and code differ: the paper words the score as the average attention from all tokens, while every variant of
    the released code reads the last row. We follow the code; ``query="all"`` is the paper's wording. The paper's R is
    the share *dropped*, ours is kept, rounded down exactly (the code rounds to nearest). Tokens leave at prefill, once
    and with the cache, as in the authors' transformers fork, and original position ids stay. The code's uncached
    variant, which ranks anew at every step, is another algorithm and not offered.

    When it fails: last-row attention in early layers favours the end of the raster, so localisation, small text and
    budgets below a quarter suffer; random or pooled tokens often do better there. ``query="all"`` favours the start
    instead, because under the causal mask early tokens are seen by more queries. Decoding is hardly faster.

    Cost: one attention row per head, O(N d), beside the fused kernel (``all``: O(T N d), in blocks).

    Parameters: ``k``, boundary of the cut (2 in the paper, 3 in some of the scripts); ``keep_ratio`` (share kept) or
    ``keep_count`` (tokens kept per prompt); ``query``. Several images share one ranking (ours).

    ```bibtex
    @inproceedings{chen2024fastv,
      title={An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
             Vision-Language Models},
      author={Chen, Liang and Zhao, Haozhe and Liu, Tianyu and Bai, Shuai and Lin, Junyang and Zhou, Chang and
              Chang, Baobao},
      booktitle={European Conference on Computer Vision (ECCV)},
      year={2024},
      note={arXiv:2403.06764}
    }
    ```
    """

    name: ClassVar[str] = "fastv"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.COLUMN_MEAN})
    acts_at: ClassVar[str] = "k"

    keep_ratio: RatioOrNone = Field(default=0.5, description="share of the visual tokens kept from layer k on")
    k: int = Field(default=2, ge=1, description="boundary of the cut: layers 0..k-1 see every token")
    query: Literal["last", "all"] = Field(default="last", description="whose attention in layer k-1 counts")

    def needed(self) -> frozenset[Need]:
        """The one kind of row that ``query`` reads."""
        return frozenset({Need.LAST_ROW if self.query == "last" else Need.COLUMN_MEAN})

    def score(self, site: LayerSite) -> Tensor:
        """Attention received, mean over heads."""
        return (site.last_row if self.query == "last" else site.column_mean).mean(dim=1)
