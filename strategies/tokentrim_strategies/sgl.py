"""``sgl``: a small model answers first; what it looked at stays in the large one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from tokentrim import GuideRequest, LayerSite, ModelShape, Need, SpatialScorer, Stage, keep_count
from tokentrim_strategies._keeping import Keeping, RatioOrNone, Share, ShareOrNone

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH: Final = 0.4


class SGL(Keeping, SpatialScorer):
    """Keep the visual tokens that a guide model attends to while it answers the same prompt; drop the rest before k.

    Score of visual token j, with A the guide's softmax over all keys, L' its layers and H' its heads:

    ``s_j = sum_l sum_h ( sum_i A[l, h, i, j] + sum_t A[l, h, t, j] )``

    over the prompt's text i behind the last visual token, and over the guide's generated tokens t up to its end token.
    Sums, not means: a long answer weighs more than the prompt. The released code starts the prompt's rows at the last
    visual token itself, one too early; we start behind it, as the paper words it. ``layers`` and ``rows`` are the
    paper's ablations; with ``guide="self"``, ``rows="last"`` and ``layers=[k-1]`` this is FastV.

    The guide must see the same visual tokens: the same tower, tiling and placeholders (its own tower runs again).

    **Early exit** (off unless ``exit_threshold`` is set): inside ``generate`` the guide answers to the end, and its
    answer y_1 .. y_n, end token included, is returned where ``(S_conf + S_cons) / 2`` is above the threshold:

    ``S_conf = (prod_t p(y_t))^(1/n)``,  ``S_cons = prod_t q(y_t)``

    p are the guide's probabilities, q those it gives the same tokens when it sees only the ``consistency_ratio`` of the
    visual tokens that it attended to most, dropped at its input, in one forward. The large model's decoder then runs
    only for prompts in which some row does not exit; its tower has run by then. The paper fixes no threshold and its
    released evaluation always runs the large model. A greedy answer per row is all that a guide can give: beams,
    sampling, streamers and logits processors are refused. ``trace.exit_scores`` holds the scores, to choose one by.

    When it fails: a guide that answers wrongly looks at the wrong place; one not much smaller than the model costs more
    than pruning saves (the paper says so of its own 26B model). An answer that exits is the guide's, errors included.
    The guide's whole answer is counted in prefill and selection time; its FLOPs are ``guide_flops_ratio`` of a report,
    and not in ``flops_ratio``.

    Cost: the guide's answer of up to ``guide_tokens`` tokens, with T_text + 1 attention rows per layer and head; under
    early exit the whole answer, and one more prefill with few visual tokens.

    Parameters: ``guide``, a registered model or folder; ``k``, boundary of the cut in the large model, and
    ``keep_ratio`` or ``keep_count``. By default both are as in the released script, 40 % of the depth (12 of 32 layers)
    and 40 % of the tokens; the paper also pairs 19 % with 20 % and 4 % with 5 %. A budget below the share of layers in
    front of k cannot be met: set a smaller one. ``guide_tokens``, most tokens of the guide's
    answer (ours: 16); ``rows``; ``layers``; ``exit_threshold``, ``consistency_ratio``.

    ```bibtex
    @inproceedings{zhao2025sgl,
      title={A Stitch in Time Saves Nine: Small {VLM} is a Precise Guidance for Accelerating Large {VLMs}},
      author={Zhao, Wangbo and Han, Yizeng and Tang, Jiasheng and Li, Zhikai and Song, Yibing and Wang, Kai and
              Wang, Zhangyang and You, Yang},
      booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year={2025},
      note={arXiv:2412.03324}
    }
    ```
    """

    name: ClassVar[str] = "sgl"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GUIDE})
    acts_at: ClassVar[str] = "k"

    keep_ratio: RatioOrNone = Field(default=0.4, description="share of the visual tokens kept from layer k on")
    k: int | None = Field(
        default=None, ge=0, description="boundary of the cut: layers 0..k-1 see every token; None = 40 % of the layers"
    )
    guide: str = Field(default="self", min_length=1, description="a registered model, a folder, or self")
    guide_tokens: int = Field(default=16, ge=1, description="most tokens of the guide's answer")
    rows: Literal["both", "prompt", "generated", "last"] = Field(
        default="both",
        description="whose attention counts: the prompt's text, the generated tokens, both, the last token",
    )
    layers: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="the guide's layers; all if left out"
    )
    exit_threshold: ShareOrNone = Field(default=None, description="score above which the guide's answer is returned")
    consistency_ratio: Share = Field(
        default=0.05, description="share of the tokens with which the guide is asked again"
    )

    def boundary_of(self, shape: ModelShape) -> int:
        """``k``, or 40 % of the depth."""
        return keep_count(_DEPTH, shape.n_layers) if self.k is None else self.k

    def wants_guide(self) -> GuideRequest:
        """The guide, and what is read of it."""
        tokens = self.guide_tokens if self.rows in ("both", "generated") else 1
        return GuideRequest(self.guide, tokens, self.rows, self.layers, self.exit_threshold, self.consistency_ratio)

    def score(self, site: LayerSite) -> Tensor:
        """What the guide attended to."""
        return site.guide
