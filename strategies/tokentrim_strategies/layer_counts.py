"""``layer-counts``: a keep rate for every layer, as a calibration (G-Search, P-Sigmoid) or the user found it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokentrim import LayerSite, Need, ReplacedBy, SpatialScorer, Stage
from tokentrim.calibrate import MadeFor, Query
from tokentrim_strategies._calibrated import Calibrated
from tokentrim_strategies._scores import text_row_mean

if TYPE_CHECKING:
    from torch import Tensor


class LayerCounts(Calibrated, SpatialScorer):
    """Keep a given share, or number, of the visual tokens from each boundary on; the most attended stay.

    Count at boundary b, of n visual tokens: ``floor(rates[b] n)``, exactly, or ``counts[b]``, never more than are left.
    Score of token j, with A the softmax over all keys in layer b-1, the previous layer, and H heads:

    - ``query="text"``: ``(1/(H T)) sum_h sum_i A[h, i, j]`` over the T text tokens i of the prompt;
    - ``query="last"``: ``(1/H) sum_h A[h, last, j]``, the row of FastV's code.

    This runs the per-layer keep rates of G-Search and P-Sigmoid, which ``tokentrim calibrate`` finds. From the paper:
    a keep rate for every layer, falling with depth, kept sets nested, rates found offline on calibration data. It
    comes without code, and its formula for the score was not available to us: both rows, and the use of the previous
    layer, are our **reconstruction**, as is the search. Original position ids stay (ours).

    When it fails: rates found on one model or kind of question need not suit another; a schedule file knows the sizes
    of its model and refuses others, but not other questions. The ranking has the failures of ``fastv`` and ``pvtp``.

    Cost: rows of attention in every layer before a cut, O(N d) per query row, beside the fused kernel. A curve that
    falls at each boundary pays in each layer; a boundary at which nothing falls costs nothing.

    Parameters: either ``file``, or ``rates`` (boundary -> share of all visual tokens) or ``counts`` (boundary ->
    tokens per prompt) with ``query`` and perhaps ``made_for`` (sizes of the model). The default has FastV's
    counts: half of the tokens from boundary 2 on.

    ```bibtex
    @inproceedings{zhao2025searching, booktitle={CVPR}, year={2025}, note={arXiv:2412.00556},
      title={Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction},
      author={Zhao, Shiyu and Wang, Zhenting and Juefei-Xu, Felix and Xia, Xide and Liu, Miao and Wang, Xiaofang and
              Liang, Mingfu and Zhang, Ning and Metaxas, Dimitris N. and Yu, Licheng}}
    ```
    """

    name: ClassVar[str] = "layer-counts"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.TEXT_ROWS})
    brought: ClassVar[tuple[str, ...]] = ("query", "made_for")

    file: Path | None = Field(default=None, description="schedule file (YAML) that tokentrim calibrate wrote")
    rates: Annotated[dict[int, float] | None, ReplacedBy()] = Field(
        default={2: 0.5}, description="boundary -> share of all visual tokens kept from there on"
    )
    counts: dict[int, int] | None = Field(
        default=None, description="boundary -> visual tokens kept per prompt, instead of rates"
    )
    query: Query = Field(
        default="text", description="whose attention ranks: the mean of all text tokens, or the last prompt token's"
    )
    made_for: MadeFor | None = Field(default=None, description="sizes of the model; any other is refused")

    def needed(self) -> frozenset[Need]:
        """The one kind of row that ``query`` reads."""
        return frozenset({Need.LAST_ROW if self.query == "last" else Need.TEXT_ROWS})

    def score(self, site: LayerSite) -> Tensor:
        """Attention in the previous layer, mean over heads (and over text tokens)."""
        return site.last_row.mean(dim=1) if self.query == "last" else text_row_mean(site)
