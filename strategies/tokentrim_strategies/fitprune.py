"""``fitprune``: a few visual tokens go behind almost every layer, those that image and question attend to least."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, ReplacedBy, SpatialScorer, Stage
from tokentrim.calibrate import MadeFor
from tokentrim_strategies._calibrated import Calibrated
from tokentrim_strategies._stages import between

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH: Final = 32
_TOKENS: Final = 576
_DELETED: Final = {
    0: (),
    10: (0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0, 1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1),
    20: (0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0, 6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1),
    30: (0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0, 16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4),
    40: (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2),
    50: (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2),
    55: (6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2, 29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1),
    60: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1),
    70: (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1),
    80: (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1),
    90: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1),
}
"""Per cent of FLOPs cut -> visual tokens of LLaVA-1.5-7B that are deleted in layer 0, 1, ...; published (a fact)."""
_LEFT: Final = {cut: [_TOKENS - sum(gone[:layer]) for layer in range(_DEPTH)] for cut, gone in _DELETED.items()}
"""Tokens that layer 0, 1, ... then sees."""


class FitPrune(Calibrated, SpatialScorer):
    """Delete the visual tokens that are looked at least, by the image and by the question, behind almost every layer.

    With A[i, j] the largest attention of all heads from query i to visual token j in the layer before the cut, n visual
    tokens left: ``score(j) = (1/n sum of A[i, j] over visual i) (sum of A[i, j] over the text i behind the image)``;
    the lowest go. How many go where is fixed beforehand, by a recipe for a share of the FLOPs:

    - ``flops_cut``: the recipes that the authors published for LLaVA-1.5-7B, at .1, .2, ..., .5, .55, .6, ..., .9 of
      the visual tokens' FLOPs; linear between them, as shares of the visual tokens, and in a model of L layers the cut
      before layer b is that before layer ``floor(32 b / L)`` of 32 (ours). By our count, behind whole layers, they cut
      two points less than they say, and those of .1 and .2 cut .06 and .15. On another model, calibrate;
    - ``file``: a schedule that ``tokentrim calibrate fitprune`` found, or ``rates`` or ``counts`` written out.

    Follows the released code but for one thing: there tokens leave *inside* a layer, behind its attention, so that its
    feed-forward part no longer sees them; here they leave behind the whole layer. What later layers see is the same;
    the layer of the cut computes them once more, and the last layer deletes nothing. The cache of that layer holds them
    either way. Original positions stay, as in the code. Text in front of the image has no say. Several images share
    one ranking, and the question is the text behind the last (ours).

    When it fails: sums over causal rows favour the top of the raster, which more queries see; a recipe fits the model
    and the kind of question that it was made on; what goes in the first layers goes before the question has been read.
    A port elsewhere keeps the lowest instead, so numbers printed for "FitPrune" need a look at who ran it.

    Cost: attention of all queries in every layer before a cut, O(T N d) each, in blocks beside the fused kernel, where
    the released code holds whole maps.

    Parameters: ``flops_cut`` (share of the visual tokens' FLOPs in the decoder), or ``file``, ``rates`` (boundary ->
    share of all visual tokens) or ``counts`` (boundary -> tokens per prompt), with ``made_for`` (sizes of the model).

    ```bibtex
    @inproceedings{ye2025fitprune,
      title={Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models},
      author={Ye, Weihao and Wu, Qiong and Lin, Wenhao and Zhou, Yiyi},
      booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
      year={2025},
      note={arXiv:2409.10197}
    }
    ```
    """

    name: ClassVar[str] = "fitprune"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HEAD_PEAKS})
    budget_knob: ClassVar[str | None] = "flops_cut"
    sources: ClassVar[tuple[str, ...]] = ("flops_cut", "file", "rates", "counts")
    usual: ClassVar[str] = "flops_cut"

    flops_cut: Annotated[float | None, ReplacedBy(), Field(ge=0, le=0.9, allow_inf_nan=False)] = Field(
        default=0.6, description="share of the visual tokens' FLOPs that goes, by the published recipes"
    )
    file: Path | None = Field(default=None, description="schedule file (YAML) that tokentrim calibrate wrote")
    rates: dict[int, float] | None = Field(
        default=None, description="boundary -> share of all visual tokens kept from there on"
    )
    counts: dict[int, int] | None = Field(default=None, description="boundary -> visual tokens kept per prompt")
    made_for: MadeFor | None = Field(default=None, description="sizes of the model; any other is refused")

    def kept(self, shape: ModelShape) -> dict[int, Fraction | float | int]:
        """By the recipe, or as it is written."""
        if self.flops_cut is None:
            return super().kept(shape)
        left = between(_LEFT, 100 * Fraction(str(self.flops_cut)))
        return {b: left[b * _DEPTH // shape.n_layers] / _TOKENS for b in range(1, shape.n_layers)}

    def score(self, site: LayerSite) -> Tensor:
        """Attention from the image times attention from the question, each of the head that gives the most."""
        import torch

        image, question = site.head_peaks.unbind(dim=1)
        left = torch.tensor(site.n_visual, device=site.device).clamp(min=1).unsqueeze(1)
        return image / left * question
