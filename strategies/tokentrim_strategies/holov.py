"""``holov``: every strip of the picture keeps as much as [CLS] attends to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import ReadsBlock
from tokentrim_strategies._shares import KeepingShares

if TYPE_CHECKING:
    from torch import Tensor

_CROPS: Final = 16
_FORGOTTEN: Final = 1090.0
"""By how much the code weighs a crop of several tokens more than one of a single token: 1000, and 9 % of variance."""


class HoloV(ReadsBlock, KeepingShares, SpatialSelector):
    """Cut the raster into crops; give each a share of T by its mean [CLS] attention, and keep its most attended tokens.

    With ``a_j = (1/H) sum_h A[h, CLS, j]``, A the softmax in block ``block`` of the vision tower, by default the one
    whose output becomes the features (attention received from all patches where the tower has no [CLS]):

    - crops are runs of consecutive tokens, floor(N / crops) each, the first ones one more where that leaves a rest. Of
      24 x 24 tokens and 16 crops a crop is one and a half rows: a strip, no window;
    - crop c has weight ``w_c = mean of a_j over the crop`` and keeps ``floor(T w_c / sum w)`` tokens; what is left of T
      goes to the heaviest crops, one each;
    - in a crop the tokens with the highest a_j stay.

    **There is no diversity in it.** Paper and code add to every a_j a term of the variance of the token's cosines in
    its crop, but the code scales that term to the crop's own mean attention, so that it makes up the same share of
    every w_c, and nothing else reads it: without it, the authors' code keeps the same tokens. So no features are read
    here. The paper's second step, fetching dropped tokens again in the language model, is not in the code either.

    A crop may be given more than it has. ``total: released`` loses that, as the code does (which fills up with zero
    vectors, while nothing comes in their place here), and weighs a crop of one token a thousand times less than others,
    as the code does; ``exact`` (ours) keeps as many of the most attended tokens of all other crops instead, and weighs
    all crops alike. Where no crop is given too much or has one token the two are the same. Order stays that of the
    raster: the code sorts the tokens of a cut crop by attention. LLaVA's code numbers positions after pruning
    (``positions: renumber``; our default keeps them, as the code for Qwen does). The crops of a tiled image are cut out
    of thumbnail and tiles in one, as in the code; so are those of several images (ours).

    When it fails: it never reads the question. A strip is no object: tokens above one another are in different crops.
    Attention sinks in a crop make it heavy, whatever it shows.

    Cost: one attention row per head in one block, O(P d), and two sorts.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 192, 128 and
    64 of 576), ``crops`` (None: 16, and where the tower has no [CLS] ``floor(16/9 N / T)``, at least 1, as the code for
    Qwen2.5-VL has it), ``block`` (block of the tower, negative = from the end; None = the features'), ``total``.

    ```bibtex
    @inproceedings{zou2025holov,
      title={Don't Just Chase "Highlighted Tokens" in {MLLM}s: Revisiting Visual Holistic Context Retention},
      author={Zou, Xin and Lu, Di and Wang, Yizhou and Yan, Yibo and Lyu, Yuanhuiyi and Zheng, Xu and Zhang, Linfeng and
              Hu, Xuming},
      booktitle={Advances in Neural Information Processing Systems},
      year={2025},
      note={arXiv:2510.02912}
    }
    ```
    """

    name: ClassVar[str] = "holov"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VISION_ROWS})

    crops: int | None = Field(
        default=None, ge=1, description="crops of a prompt's visual tokens; None = 16, or by the budget without [CLS]"
    )
    block: int | None = Field(
        default=None,
        description="block of the vision tower whose attention counts, -1 = the last; None = that of the features",
    )

    def crops_of(self, shape: ModelShape, n_visual: int, count: int) -> int:
        """Crops that ``n_visual`` tokens are cut into where ``count`` stay; none is empty."""
        wanted = self.crops
        if wanted is None:
            tiling = None if shape.vision is None else shape.vision.tiling
            wanted = _CROPS if tiling is None or getattr(tiling, "cls", 0) else 16 * n_visual // (9 * max(count, 1))
        return max(min(wanted, n_visual), 1)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Those that their crop has room for, then the most attended ones."""
        import torch

        from tokentrim import grouped_order, ranks_within

        scores = site.vision_rows[:, 0].float().mean(dim=1).masked_fill(~site.valid, 0.0)
        wanted = [int(n) for n in count]
        crops = [self.crops_of(site.shape, *pair) for pair in zip(site.n_visual, wanted, strict=True)]
        size = torch.tensor([[n // c, n % c] for n, c in zip(site.n_visual, crops, strict=True)], device=site.device)
        small, longer = size[:, :1], size[:, 1:]  # the first ``longer`` crops have one token more
        token = torch.arange(scores.shape[1], device=site.device)
        behind = longer + (token - longer * (small + 1)).clamp(min=0) // small.clamp(min=1)
        crop = torch.where(token < longer * (small + 1), token // (small + 1), behind)
        crop = crop.masked_fill(~site.valid, scores.shape[1])

        number = torch.arange(max(crops, default=0), device=site.device)
        # Doubles add up to the same in any batch.
        mass = torch.zeros(len(crops), scores.shape[1] + 1, dtype=torch.float64, device=site.device)
        mass = mass.scatter_add(1, crop, scores.double())[:, : len(number)]
        length = small + (number < longer)
        weight = mass / length.clamp(min=1)
        if self.total == "released":
            weight = torch.where(length == 1, weight / _FORGOTTEN, weight)
        whole = count.to(site.device).unsqueeze(1)
        quota = (whole * weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-30)).floor().long()
        heaviest = grouped_order(weight, (number >= torch.tensor(crops, device=site.device).unsqueeze(1)).long())
        quota = quota + (heaviest < whole - quota.sum(dim=1, keepdim=True)).long()

        quota = torch.nn.functional.pad(quota, (0, 1)).gather(1, crop.clamp(max=len(number)))
        site.note(scores, "attention, ranked in each crop")
        return self.settled(site, scores, (ranks_within(scores, crop) >= quota).long() + 1, count)
