"""``dart``: tokens that are unlike a few pivots, image tokens and words alike; duplicates go."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Keeping

if TYPE_CHECKING:
    from torch import Tensor


class DART(Keeping, SpatialSelector):
    """Keep a few pivots and the visual tokens that resemble them least; what duplicates them goes before layer k.

    - Pivots: the ``image_pivots`` visual tokens, and the ``text_pivots`` text tokens behind the image, whose keys in
      layer k-1 (after RoPE, all heads) have the largest L1 norm.
    - Each pivot in turn takes the ``floor(M / P)`` visual tokens that are not taken yet and have the lowest cosine with
      it; P pivots, M tokens asked for. Vectors: the states that enter layer k, under the model's *final* norm.
    - Kept: image pivots and all that was taken, ``image_pivots + P floor(M / P)`` tokens: 196, 132 and 68 where 192,
      128 and 64 are asked for.

    Follows the released code (its Qwen files have the same rule), where the order of pivots is that of a Python set of
    positions; here they take their turns in the order of the prompt (ours), which changes some of the tokens. Where
    the text behind the image has fewer tokens than ``text_pivots``, pivots take second turns; all tokens asked for are
    all, none are none (ours). Original positions stay, as in the code. Several images share one set of pivots, and the
    text is what follows the last (ours); the code takes one image.

    When it fails: the question counts through the norms of its keys alone, so a small region has no advocate; the
    first pivots take the farthest tokens, often background. Papers report it well on general questions and far behind
    on small text. The L1 norm of a rotated key depends on its absolute position: a forward whose position ids count
    padding (``generate`` passes ids that do not) has other pivots.

    Cost: norms of keys, and P rows of N cosines, O(P N D); no attention is read, and layers before k see everything.

    Parameters: ``keep_ratio`` (share asked for) or ``keep_count`` (tokens asked for per prompt, M; the code's default
    is 128), ``k`` (boundary; 2 in the code), ``image_pivots``, ``text_pivots``.

    ```bibtex
    @inproceedings{wen2025dart,
      title={Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More},
      author={Wen, Zichen and Gao, Yifeng and Wang, Shaobo and Zhang, Junyuan and Zhang, Qintong and Li, Weijia and
              He, Conghui and Zhang, Linfeng},
      booktitle={Proceedings of the Conference on Empirical Methods in Natural Language Processing (EMNLP)},
      year={2025},
      note={arXiv:2502.11494}
    }
    ```
    """

    name: ClassVar[str] = "dart"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.KEYS, Need.TEXT_KEYS, Need.HIDDEN, Need.TEXT_HIDDEN, Need.FINAL_NORM}
    )
    acts_at: ClassVar[str] = "k"

    k: int = Field(default=2, ge=1, description="boundary of the cut: layers 0..k-1 see every token")
    image_pivots: int = Field(default=4, ge=1, description="visual tokens that are pivots")
    text_pivots: int = Field(default=4, ge=0, description="text tokens behind the image that are pivots")

    @property
    def pivots(self) -> int:
        """Pivots in all."""
        return self.image_pivots + self.text_pivots

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Image pivots, and what all pivots take."""
        asked = super().schedule(shape, n_visual).count_at(self.k)
        taken = self.image_pivots + asked // self.pivots * self.pivots
        return Schedule.of({self.k: asked if asked in (0, n_visual) else min(taken, n_visual)})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Image pivots, then turn by turn what resembles a pivot least."""
        import torch

        from tokentrim import rows_at, unit

        image, text, behind = self.by_norm(site)
        states, words = unit(site.final_norm(site.hidden)), unit(site.final_norm(site.text_hidden[0]))
        pool = torch.cat([states, words], dim=1)
        rows = torch.matmul(rows_at(pool, self.in_turn(site, image, text, behind)), states.transpose(1, 2))  # [B, P, N]
        kept = count.to(site.device).unsqueeze(1)
        first = kept.clamp(max=self.image_pivots)
        each = -(-(kept - first) // self.pivots)
        places = torch.arange(site.valid.shape[1], device=site.device)
        # Image pivots stand first in ``image``; padding counts as taken.
        taken = torch.zeros_like(site.valid).scatter(1, image, places < first) | ~site.valid
        for turn in range(self.pivots):
            order = rows[:, turn].masked_fill(taken, float("inf")).argsort(dim=1, stable=True)
            wanted = torch.minimum(each, kept - first - turn * each)
            taken = taken | torch.zeros_like(taken).scatter(1, order, places < wanted)
        return Selection.from_mask(taken & site.valid, tuple(count.tolist()))

    def by_norm(self, site: LayerSite) -> tuple[Tensor, Tensor, Tensor]:
        """(visual tokens int64 [B, N] and text tokens behind the image int64 [B, T], by falling norm of their keys, and
        how many the latter are, int64 [B, 1]; of both what is not there comes last).
        """
        keys, _, behind = site.text_keys
        image = site.keys.float().abs().sum(dim=(1, 3)).masked_fill(~site.valid, float("-inf"))
        text = keys.float().abs().sum(dim=(1, 3)).masked_fill(~behind, float("-inf"))
        ranked = (norms.argsort(dim=1, descending=True, stable=True) for norms in (image, text))
        return next(ranked), next(ranked), behind.sum(dim=1, keepdim=True)

    def in_turn(self, site: LayerSite, image: Tensor, text: Tensor, behind: Tensor) -> Tensor:
        """int64 [B, P]: whose turn it is, in the order of the prompt; text tokens are numbered from N on.

        Where there are fewer than P pivots they begin again.
        """
        import torch

        width, last = image.shape[1], image.shape[1] + text.shape[1]
        visual = image.masked_fill(~site.valid.gather(1, image), last)[:, : self.image_pivots]
        words = torch.where(torch.arange(last - width, device=site.device) < behind, text + width, last)
        pivots = torch.cat([visual, words[:, : self.text_pivots]], dim=1).sort(dim=1).values
        there = (pivots < last).sum(dim=1, keepdim=True).clamp(min=1)
        return pivots.gather(1, torch.arange(self.pivots, device=site.device) % there).clamp(max=last - 1)
