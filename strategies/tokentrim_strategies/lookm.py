"""``lookm``: each layer keeps the visual entries that the prompt attended to, and merges the others into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokentrim import CacheMerger, Need, StepSite
from tokentrim_strategies._entries import KeepingEntries

if TYPE_CHECKING:
    from torch import Tensor


class LookM(CacheMerger, KeepingEntries):
    """Keep, in each layer's cache, text and the visual entries that received most attention; the rest merges into them.

    Score of visual entry j, with A the layer's softmax at prefill: ``sum_i sum_h A[h, i, j]`` over all queries i of the
    prompt and heads h. From the first decode step on every layer holds the T best. Of those that leave, entry e goes,
    in each key/value head, to the kept c with the largest ``w_e = cos(k_e, k_c)``; for the set E(c) that goes to c

    ``k_c <- (k_c + sum_{e in E(c)} m_e) / (1 + |E(c)|)``, and values likewise, by the keys' choice. By ``merge``:

    - ``pivot`` (the released default): ``m_e = (k_e + k_c) / 2``;
    - ``weighted``: ``m_e = w_e k_e``, values with the same w; ``average``: ``m_e = k_e``. In these, as released, only
      entries go to another whose w, mean over heads, is at least the mean of all; the others are dropped;
    - ``average-released``: as the code runs, which leaves the others out of the places alone: the r-th place that takes
      something takes the r-th entry that leaves, whoever it belongs to;
    - ``none``: all are dropped.

    Keys have their rotary positions already. Follows the released code in these formulas; these are ours: heads share
    one set, by their summed scores, as a cache's account (traces, masks, attention maps) is one set of tokens per
    layer, where the code keeps a set per head; only visual entries take in visual entries, where the code lets text do
    so, too (a published benchmark finds that merging across the two hurts); a share of the visual entries stays, where
    the code counts a tenth of the whole prompt, text first, besides the last tenth. Where processes share the heads,
    means over heads are each one's own.

    When it fails: sums favour early entries, which more queries see; the question is one voice among all. Means of
    keys at different positions are no key of either, and weights below 1 shorten them: at small shares dropping can be
    better than merging. It saves decode time and memory, nothing at prefill, and nothing for answers of one token.

    Cost: attention of all queries in every layer at prefill, in blocks (O(T^2 d) once more, H x 128 x T numbers for the
    moment), and N x T cosines per head and layer, once.

    Parameters: ``keep_ratio`` (share of the visual entries kept) or ``keep_count`` (entries per prompt and layer),
    ``merge``.

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

    merge: Literal["pivot", "average", "weighted", "average-released", "none"] = Field(
        default="pivot", description="what becomes of the entries that leave"
    )

    def score(self, site: StepSite) -> Tensor:
        """Attention received, mean over queries and heads."""
        return site.prompt_columns.mean(dim=1)

    def merged(self, keys: Tensor, values: Tensor, kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The kept entries, each with what goes to it."""
        return self.merged_by_head(keys, values, kept.unsqueeze(1).expand(-1, keys.shape[1], -1), valid)

    def merged_by_head(self, keys: Tensor, values: Tensor, kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`merged`, of sets ``kept`` int64 [B, H_kv, n] of each head, of one size in each row."""
        import torch

        from tokentrim import most_alike, rows_at, written

        if self.merge == "none" or not kept.shape[2]:
            return rows_at(keys, kept), rows_at(values, kept)
        gone = written(valid.unsqueeze(1).expand(-1, keys.shape[1], -1), kept, torch.zeros_like(kept, dtype=torch.bool))
        leaving = (~gone).byte().argsort(dim=2, stable=True)  # in front, in their order
        goes = gone.gather(2, leaving)
        one = torch.zeros_like(leaving), kept.clamp(max=0)  # any may go to any that is there
        weight, nearest = most_alike(rows_at(keys, leaving), rows_at(keys, kept), *one)
        if self.merge != "pivot":
            alike = weight.masked_fill(~goes, 0.0)
            mean = alike.sum(dim=(1, 2)) / goes.sum(dim=(1, 2)).clamp(min=1)
            goes &= (alike.mean(dim=1) >= mean.unsqueeze(1)).unsqueeze(1)
        if self.merge == "average-released":
            leaving = leaving.gather(2, (goes.cumsum(dim=2) - 1).clamp(min=0))
        number = torch.ones_like(kept, dtype=torch.float32).scatter_add(2, nearest, goes.float()).unsqueeze(3)
        found: list[Tensor] = []
        for whole in (keys, values):
            own, share = rows_at(whole, kept).float(), rows_at(whole, leaving).float()
            there = nearest.unsqueeze(3).expand_as(share)
            if self.merge == "pivot":
                share = (share + own.gather(2, there)) / 2
            elif self.merge == "weighted":
                share = share * weight.unsqueeze(3)
            share = share.masked_fill(~goes.unsqueeze(3), 0.0)
            found.append((own.scatter_add(2, there, share) / number).to(whole.dtype))
        return found[0], found[1]
