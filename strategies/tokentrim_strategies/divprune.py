"""``divprune``: tokens that lie far from each other, whatever was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Keeping

if TYPE_CHECKING:
    from torch import Tensor


class DivPrune(Keeping, SpatialSelector):
    """Spread the kept tokens: greedy max-min of cosine distance between projected features, at boundary 0.

    With ``d_ij = 1 - cos(x_i, x_j)`` over the projected visual tokens x, and S what is chosen so far:

    - the first token is the one whose nearest other token is farthest, ``argmax_i min_{j != i} d_ij``;
    - each further one is ``argmax_{i not in S} min_{j in S} d_ij``, until T are chosen (a 2-approximation of the set
      with the largest smallest distance). Equal distances go to the lower number; raster order is kept.

    Follows the released code, with one departure: that does not bar what is chosen, so that a picture with fewer
    distinct tokens than T gets one of them several times; here copies (cosines above 1 - 1e-6) come last, lowest number
    first. The code rounds its share of the tokens to the nearest whole number, half to even; here ``keep_ratio`` is
    rounded as everywhere, and ``keep_count`` says the number itself. The code numbers positions after pruning
    (``positions: renumber``; our default keeps them). All tiles of a picture are one list, as in the code, but without
    their line ends, which stay here and are candidates there; several pictures of a prompt are one list, too (ours).

    When it fails: it knows neither the question nor what is salient. Spread is good for questions about what is there
    at all, and poor for small text; outliers of the background and padding are far from everything and chosen
    early, and simple pictures make the model speak of things that are not there.

    Cost: one N x N matrix of cosines, O(N^2 D), and T rounds of O(N), each a few operations on the device: on a GPU
    their number is felt at small pictures. Above 4096 tokens the matrix is not kept, and a round is O(N D).

    Parameters: ``keep_ratio`` (share kept; the release's own is 0.098) or ``keep_count`` (tokens kept per prompt; the
    usual ones are 192, 128 and 64 of 576).

    ```bibtex
    @inproceedings{alvar2025divprune,
      title={{DivPrune}: Diversity-based Visual Token Pruning for Large Multimodal Models},
      author={Alvar, Saeed Ranjbar and Singh, Gursimran and Akbari, Mohammad and Zhang, Yong},
      booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year={2025},
      note={arXiv:2503.02175}
    }
    ```
    """

    name: ClassVar[str] = "divprune"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})

    def order(self, site: LayerSite, count: Tensor) -> Tensor:
        """int64 [B, n]: the kept tokens in the order in which they are chosen; -1 past a row's count."""
        from tokentrim import farthest_first

        return farthest_first(site.features, site.n_visual, count.tolist())

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What is chosen, in raster order."""
        from tokentrim import marked

        mask = marked(self.order(site, count), site.valid.shape[1])
        return Selection.from_mask(mask, tuple(count.tolist()))
