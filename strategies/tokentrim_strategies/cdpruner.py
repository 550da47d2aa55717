"""``cdpruner``: tokens unlike each other, under the condition of the question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import (
    LayerSite,
    ModelShape,
    Need,
    Selection,
    SpatialSelector,
    Stage,
    StrategyError,
    complaint,
)
from tokentrim_strategies._keeping import Keeping
from tokentrim_strategies._question import question

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import ClipSpace, Pictures


class CDPruner(Keeping, SpatialSelector):
    """Choose each picture's tokens by a determinantal point process that is conditioned on the question.

    With x the projected visual tokens, e vectors of them in a space that text shares, and t_1 .. t_m of the question:

    - relevance ``q_j = s mean_i cos(e_j, t_i)``, s a sign, and ``r_j = (q_j - min q + 1e-6) / (max q - min q)`` with
      the extremes over all pictures of a prompt (1 for all where these are equal);
    - kernel ``L = diag(r) C diag(r)`` with C the cosines of x; the set S that greedily maximises ``det L_S``: each
      token is the one with the largest part outside the span of those before it. Raster order is kept.

    **Whose relevance.** The paper asks CLIP: e is what its image head makes of the tower's tokens, t its text tower's
    vector of the question (one per 77 tokens), and the released sign is *minus*: chosen is what resembles the question
    least, which the authors confirm and saw with CLIP alone. A LLaVA checkpoint holds no text tower: name the folder
    of the CLIP checkpoint that its vision tower is of (``text_tower``) for this. Where none is named, e = x and t are
    the language model's own input embeddings of the question's tokens, and the sign is plus, as in ports to models
    without CLIP (**ours** for LLaVA: call the result by that name). The question is the text behind the last picture,
    or all text where none is behind it, words of the chat template included (ours; the code is handed the question
    itself). CLIP is handed it as the model's own tokenizer spells it.

    Follows the released code, but for sets larger than the rank of L: there the code takes roots of numbers that are
    not positive and keeps fewer tokens; here the lowest ones that are left follow. The paper's exponent theta is
    commented out in the code and not offered. Images, frames and tiles choose by themselves, each a share of T by its
    size (the code: T per tile, all tiles being equal). The code numbers positions after pruning (``positions:
    renumber``; our default keeps them) and drops line ends, which stay here.

    When it fails: relevance of a word is not relevance of its answer. It was made for one question: in a second turn,
    what was dropped for the first is gone. On Qwen2.5-VL re-runs disagree whether it beats choosing without a question.

    Cost: one N x N matrix of products per picture, O(N^2 D), and T rounds of O(N T). With ``text_tower`` a pass of 77
    tokens through CLIP's text tower as well, which is held in float32 (0.5 GB of CLIP-L), and a read of the device.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 128, 64 and 32
    of 576, and five times that of 2880), ``text_tower``, ``sign``.

    ```bibtex
    @inproceedings{zhang2025cdpruner,
      title={Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in {MLLMs}},
      author={Zhang, Qizhe and Liu, Mengzhen and Li, Lichen and Lu, Ming and Zhang, Yuan and Pan, Junwen and
              She, Qi and Zhang, Shanghang},
      booktitle={Advances in Neural Information Processing Systems},
      year={2025},
      note={arXiv:2506.10967}
    }
    ```
    """

    name: ClassVar[str] = "cdpruner"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.FEATURES, Need.VISION_HIDDEN, Need.TEXT_EMBEDS, Need.TEXT_IDS, Need.TEXT, Need.GRID}
    )

    text_tower: Path | None = Field(
        default=None, description="folder of the CLIP checkpoint that the vision tower is of; None = no CLIP"
    )

    sign: Literal["minus", "plus"] | None = Field(
        default=None,
        description="whether what resembles the question is worth more (plus) or less (minus); None: minus with CLIP",
    )

    def needed(self) -> frozenset[Need]:
        """CLIP's view of the picture and the question's text, or embeddings."""
        without = {Need.TEXT_EMBEDS} if self.text_tower is not None else {Need.VISION_HIDDEN, Need.TEXT}
        return self.needs - without

    def prepare(self, shape: ModelShape) -> None:
        """Load the text tower.

        Raises:
            TokentrimError: when there is none, or it is not that of the model's vision tower.
        """
        if self.text_tower is not None:
            import torch

            from tokentrim import ClipSpace

            width = 0 if shape.vision is None else shape.vision.hidden_size
            self._require(ClipSpace.of(self.text_tower, torch.device("cpu")), width)

    def _require(self, space: ClipSpace, width: int) -> None:
        if space.width != width:
            raise StrategyError(
                complaint(f"text_tower of strategy {self.name!r}", f"belong to a vision tower as wide as the model's, "
                          f"{width}", space.width, "name the CLIP checkpoint that the model's vision tower is of, "
                          "or leave text_tower out")
            )  # fmt: skip

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What is chosen, in raster order."""
        relevance = self.relevance(*self.compared(site), site.valid)
        site.note(relevance, "relevance, which conditions the choice of tokens unlike each other")
        pictures, orders = self.orders(site, relevance, count)
        return Selection.from_mask(pictures.joined(orders), tuple(count.tolist()))

    def compared(self, site: LayerSite) -> tuple[Tensor, Tensor, Tensor]:
        """(images [B, N, C], text [B, M, C], bool [B, M]): what relevance compares, in CLIP's space if there is one."""
        from tokentrim import ClipSpace

        if self.text_tower is None:
            return site.features, site.text_embeds[0], question(site)
        space, vectors = ClipSpace.of(self.text_tower, site.device), site.vision_hidden
        self._require(space, vectors.shape[-1])  # where the projector joins patches these are no vectors of the tower
        return space.images(vectors), *space.texts(["".join(row).strip() for row in site.text(question(site))])

    def relevance(self, images: Tensor, text: Tensor, asked: Tensor, valid: Tensor) -> Tensor:
        """float32 [B, N]: r of the tokens ``images`` [B, N, C] for ``text`` [B, M, C]; 0 in padding.

        Args:
            images: visual tokens, in a space that they share with text.
            text: vectors of the text.
            asked: bool [B, M]: those that make up the question.
            valid: bool [B, N]: False in padding.
        """
        import torch

        from tokentrim import unit

        # The mean of cosines is the product with the mean direction.
        directions = unit(text).masked_fill(~asked.unsqueeze(-1), 0.0).sum(dim=1)
        directions = directions / asked.sum(dim=1, keepdim=True).clamp(min=1)
        alike = torch.matmul(unit(images), directions.unsqueeze(-1)).squeeze(-1)
        sign = self.sign or ("plus" if self.text_tower is None else "minus")
        found = -alike if sign == "minus" else alike
        if not found.shape[1]:
            return found
        low = found.masked_fill(~valid, float("inf")).amin(dim=1, keepdim=True)
        high = found.masked_fill(~valid, float("-inf")).amax(dim=1, keepdim=True)
        found = torch.where(high > low, (found - low + 1e-6) / (high - low), 1.0)
        return found.masked_fill(~valid, 0.0)

    def orders(self, site: LayerSite, relevance: Tensor, count: Tensor) -> tuple[Pictures, Tensor]:
        """The pictures, and int64 [P, n]: the tokens of each in the order in which they are chosen; -1 behind them."""
        from tokentrim import Pictures, greedy_volume, unit

        def choose(pictures: Pictures, counts: tuple[int, ...]) -> Tensor:
            vectors = unit(pictures.split(site.features)) * pictures.split(relevance).unsqueeze(-1)
            return greedy_volume(vectors, pictures.sizes, counts)

        pictures = Pictures.of(site)
        return pictures, pictures.in_parts(choose, pictures.shares(count.tolist()))
