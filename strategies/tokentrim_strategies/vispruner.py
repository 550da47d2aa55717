"""``vispruner``: the tokens that [CLS] attends to, and tokens that differ from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage, keep_count
from tokentrim_strategies._keeping import Keeping, ReadsBlock, Share

if TYPE_CHECKING:
    from torch import Tensor


class VisPruner(ReadsBlock, Keeping, SpatialSelector):
    """Keep T tokens at boundary 0: some because [CLS] attends to them, the others because they are unlike each other.

    - Important: the ``floor(T important)`` tokens with the highest ``(1/H) sum_h A[h, CLS, j]``, A the softmax in block
      ``block`` of the vision tower, by default the one whose output becomes the features (attention received from all
      patches where the tower has no [CLS]).
    - Diverse: all others, in descending order of that score, are thinned out to T in all: split by turns into a and b,
      drop the at most 8 tokens of a that have the largest cosine with any token of b, and begin again with the rest of
      a (most similar first) followed by b, until as many are left as are wanted.

    Follows the released code, with three departures. The code's halves must be equal, so an odd remainder (58 of 576
    tokens: 547) fails there; here they may differ by one, and at most as many go as a holds. The code compares features
    before the projector; a strategy sees them behind it, so here those are compared (ours). On SigLIP towers the code
    ranks by the last of 27 blocks and takes features from the one before; LLaVA-OneVision in transformers ends at that
    one, so the features' block is the nearest there is. No equality of diverse tokens is claimed: halving by turns
    makes one swapped pair shift every partner behind it, so float rounding changes many of them, as half precision does
    in the code itself. The code numbers positions after pruning (``positions: renumber``; our default keeps them) and
    takes one image; several images share one ranking and one list here (ours).

    When it fails: it never reads the question. The diverse half spreads over the background and helps questions about
    presence more than those about small text; the README of the code suggests ``important: 0.75`` at 64 tokens.

    Cost: one attention row per head in one block, one N x N matrix of cosines (O(N^2 D)), and about N / 8 rounds over
    what is left of it.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 192, 128, 64
    and 32 of 576), ``important`` (share of T chosen by attention), ``block`` (block of the tower, negative = from
    the end; None = the features').

    ```bibtex
    @inproceedings{zhang2025vispruner,
      title={Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in {VLMs}},
      author={Zhang, Qizhe and Cheng, Aosong and Lu, Ming and Zhang, Renrui and Zhuo, Zhiyong and Cao, Jiajun and
              Guo, Shaobo and She, Qi and Zhang, Shanghang},
      booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
      year={2025},
      note={arXiv:2412.01818}
    }
    ```
    """

    name: ClassVar[str] = "vispruner"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS, Need.FEATURES})

    important: Share = Field(default=0.5, description="share of the kept tokens chosen by attention")
    block: int | None = Field(
        default=None,
        description="block of the vision tower whose attention counts, -1 = the last; None = that of the features",
    )

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The important tokens, and what is left of the others when near-duplicates are gone."""
        import torch

        from tokentrim import marked, thin_similar

        counts: tuple[int, ...] = tuple(count.tolist())
        important = [keep_count(self.important, kept) for kept in counts]
        score = site.vision_rows[:, 0].mean(dim=1).masked_fill(~site.valid, float("-inf"))
        site.note(score, "chooses the important tokens; the others are chosen by being unlike each other")
        order = score.argsort(dim=-1, descending=True, stable=True)
        width = order.shape[1]
        rank = torch.arange(width, device=site.device)
        first = torch.tensor(important, device=site.device).unsqueeze(1)
        mask = torch.zeros_like(site.valid).scatter(1, order, rank < first)
        # Each row's list begins behind its important tokens.
        rest = order.gather(1, (rank + first).clamp(max=width - 1))
        sizes = [n - top for n, top in zip(site.n_visual, important, strict=True)]
        diverse = [kept - top for kept, top in zip(counts, important, strict=True)]
        left = thin_similar(site.features, rest, sizes, diverse)
        return Selection.from_mask(mask | marked(left, width), counts)
