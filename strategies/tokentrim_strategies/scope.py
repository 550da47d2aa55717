"""``scope``: tokens that cover the picture best, weighed by what [CLS] attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Keeping

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Pictures


class SCOPE(Keeping, SpatialSelector):
    """Cover each picture's tokens with few of them, salient ones first: greedy coverage times [CLS] attention.

    With u the vectors of the vision tower before the projector, ``c_ij = cos(u_i, u_j)``, ``a_j = sum_h A[h, CLS, j]``
    the attention in the block whose output they are (attention received where the tower has no [CLS]), and S what is
    chosen so far:

    - ``gain_j = sum_i max(0, c_ij - max(0, max_{k in S} c_ik))``: what j would add; negative cosines never count;
    - the next token is the free one with the largest ``gain_j a_j^alpha`` (``combined: add``: ``gain_j + a_j^alpha``);
      equal ones go to the lower number. Raster order is kept.

    Follows the released code. Images, frames and tiles choose by themselves, as there; of T, each gets a share by its
    size, rounded so that T are kept in all (ours: the code gives every tile ``floor(T / tiles)``, and so keeps fewer).
    The code numbers positions after pruning (``positions: renumber``; our default keeps them). Where the projector
    joins patches (Qwen-VL) no vector before it belongs to one token, and the projected ones are compared (ours).

    When it fails: it never reads the question. Attention sinks weigh much, whatever they show; documents lose small
    text first, as with all methods that choose before the language model.

    Cost: one attention row per head in one block, one N x N matrix of cosines per picture, and O(N^2) for each token
    that is kept: three passes over that matrix, on the device.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 192, 128 and
    64 of 576, and 640, 320 and 160 of 2880), ``alpha`` (1), ``combined``.

    ```bibtex
    @inproceedings{deng2025scope,
      title={{SCOPE}: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel {LLMs}},
      author={Deng, Jinhong and Li, Wen and Zhou, Joey Tianyi and He, Yang},
      booktitle={Advances in Neural Information Processing Systems},
      year={2025},
      note={arXiv:2510.24214}
    }
    ```
    """

    name: ClassVar[str] = "scope"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS, Need.VISION_HIDDEN, Need.GRID})

    alpha: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False, description="power of the attention")
    combined: Literal["multiply", "add"] = Field(
        default="multiply", description="how a token's gain and the power of its attention make one score"
    )

    def orders(self, site: LayerSite, count: Tensor) -> tuple[Pictures, Tensor]:
        """The pictures, and int64 [P, n]: the tokens of each in the order in which they are chosen; -1 behind them."""
        import torch

        from tokentrim import Pictures, greedy_cover, unit, within

        attention = site.vision_rows[:, 0].float().sum(dim=1)
        site.note(attention, "weighs what each token would cover")

        def choose(pictures: Pictures, counts: tuple[int, ...]) -> Tensor:
            vectors, weight = unit(pictures.split(site.vision_hidden)), pictures.split(attention).pow(self.alpha)
            real = within(pictures.sizes, vectors.shape[1], site.device)
            cosines = torch.matmul(vectors, vectors.transpose(1, 2))
            cosines = cosines.masked_fill_(~(real.unsqueeze(1) & real.unsqueeze(2)), 0.0)
            add = self.combined == "add"
            return greedy_cover(cosines, real, counts, lambda gain: gain + weight if add else gain * weight)

        pictures = Pictures.of(site)
        return pictures, pictures.in_parts(choose, pictures.shares(count.tolist()))

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What is chosen, in raster order."""
        pictures, orders = self.orders(site, count)
        return Selection.from_mask(pictures.joined(orders), tuple(count.tolist()))
