"""``lookm``: each layer keeps the visual entries that the prompt attended to, and merges the others into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from tokentrim import CacheMerger, Need, StepSite
from tokentrim_strategies._keeping import KeepingEntries

if TYPE_CHECKING:
    from torch import Tensor


_AT_ONCE: Final = 1 << 25
"""Cosines that are held at once (float32: 134 MB)."""


class LookM(CacheMerger, KeepingEntries):
    """Keep, in each layer's cache, text and the visual entries that received most attention; the rest merges into them.

    Score of visual entry j, with A the layer's softmax at prefill: ``sum_i sum_h A[h, i, j]`` over all queries i of the
    prompt and heads h. From the first decode step on every layer holds the T best. Of those that leave, entry e goes,
    in each key/value head, to the kept c with the largest ``cos(k_e, k_c)``; for the set E(c) that goes to c

    ``k_c <- (k_c + sum_{e in E(c)} (k_e + k_c) / 2) / (1 + |E(c)|)``, and values likewise, by the keys' choice

    (pivot merging, the released default; ``merge: none`` drops). Keys have their rotary positions already.

    Follows the released code in the two formulas; these are ours: heads share one set, by their summed scores, as a
    cache's account (traces, masks, attention maps) is one set of tokens per layer, where the code keeps a set per
    head; only visual entries take in visual entries, where the code lets text do so, too (a published benchmark finds
    that merging across the two hurts); a share of the visual entries stays, where the code counts a tenth of the whole
    prompt, text first, besides the last tenth. The code's averaging scatters rows that do not belong to their places,
    and its weighting is a second choice in the paper: neither is here.

    When it fails: sums favour early entries, which more queries see; the question is one voice among all. Means of
    keys at different positions are no key of either: at small shares dropping can be better than merging. It saves
    decode time and memory, nothing at prefill, and nothing for answers of one token.

    Cost: attention of all queries in every layer at prefill, in blocks (O(T^2 d) once more, H x 128 x T numbers for the
    moment), and N x T cosines per head and layer, once.

    Parameters: ``keep_ratio`` (share of the visual entries kept) or ``keep_count`` (entries per prompt and layer),
    ``merge`` (pivot or none).

    ```bibtex
    @inproceedings{wan2024lookm,
      title={{LOOK-M}: Look-Once Optimization in {KV} Cache for Efficient Multimodal Long-Context Inference},
      author={Wan, Zhongwei and Wu, Ziang and Liu, Che and Huang, Jinfa and Zhu, Zhihong and Jin, Peng and Wang, Longyue
              and Yuan, Li},
      booktitle={Findings of the Association for Computational Linguistics: EMNLP},
      year={2024},
      note={arXiv:2406.18139}
    }
    ```
    """

    name: ClassVar[str] = "lookm"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROMPT_COLUMNS})
    merges: ClassVar[bool] = True

    merge: Literal["pivot", "none"] = Field(default="pivot", description="what becomes of the entries that leave")

    def score(self, site: StepSite) -> Tensor:
        """Attention received, mean over queries and heads."""
        return site.prompt_columns.mean(dim=1)

    def merged(self, keys: Tensor, values: Tensor, kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The kept entries, each with what goes to it."""
        import torch

        from tokentrim import first_argmax, unit

        slots = kept.clamp(min=0)
        pivots = _picked(keys, slots)
        if self.merge == "none" or not kept.shape[1]:
            return pivots, _picked(values, slots)
        spare = torch.cat([valid, valid[:, :1]], dim=1)  # takes the writes of padded slots
        gone = spare.scatter(1, kept.masked_fill(kept < 0, valid.shape[1]), False)[:, :-1]
        step = max(1, _AT_ONCE // max(pivots[..., 0].numel(), 1))
        towards, none = unit(pivots).transpose(2, 3), (kept < 0)[:, None, None]
        nearest = torch.cat(
            [first_argmax((part @ towards).masked_fill(none, -2.0)) for part in unit(keys).split(step, dim=2)], dim=2
        )
        found: list[Tensor] = []
        for whole in (keys, values):
            own = _picked(whole, slots).float()
            there = nearest.unsqueeze(3).expand(-1, -1, -1, whole.shape[3])
            share = ((whole.float() + own.gather(2, there)) / 2).masked_fill(~gone[:, None, :, None], 0.0)
            number = torch.zeros(own.shape[:3], device=own.device)
            number.scatter_add_(2, nearest, gone[:, None].expand_as(nearest).float())
            found.append((own.scatter_add(2, there, share) / (1 + number).unsqueeze(3)).to(whole.dtype))
        return found[0], found[1]


def _picked(whole: Tensor, slots: Tensor) -> Tensor:
    """[B, H, n, D]: entries ``slots`` [B, n] of [B, H, N, D]."""
    return whole.gather(2, slots[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
