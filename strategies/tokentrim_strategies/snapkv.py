"""``snapkv``: each layer keeps the visual entries that the end of the prompt attends to, decided once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from tokentrim import Need, StepSite, complaint
from tokentrim_strategies._entries import KeepingEntries

if TYPE_CHECKING:
    from torch import Tensor


class SnapKV(KeepingEntries):
    """Rank the cached visual entries by attention of the prompt's last tokens, smoothed, and keep the best, per layer.

    With A the layer's softmax at prefill over all keys, W the last ``window`` tokens of the prompt, and the visual
    entries j in the order of the prompt:

    - ``a[h, j] = 1/|W| sum_{i in W} A[h, i, j]``;
    - ``p[h, j] = 1/kernel sum_{|m| <= kernel // 2} a[h, j + m]``, where entries beyond the ends count as zeros;
    - key/value head g scores ``s[g, j]``, the mean of p over the query heads that read it.

    From the first decode step on every layer holds the T entries with the largest mean of s over g.

    Follows kvpress, whose means stand for the first code's sums; three things are ours. There every key/value head
    keeps a set of its own: here a cache's account (traces, masks, attention maps) is one set of tokens per layer, so
    the heads share the set with the best mean. There text competes too, and the ratio is that of the whole prompt:
    here all text stays, and only the visual entries, a share of which is kept, are smoothed with each other. There the
    window's own entries always stay: visual tokens among them can go here.

    When it fails: the question must be behind the image and must ask for what the answer needs; a second turn about
    something else finds the rest gone. A window longer than the question holds visual tokens, which look at their
    neighbours: shorten it. Heads that look at different places lose what few of them look at. It saves decode time
    and memory, nothing at prefill, and nothing for answers of one token.

    Cost: ``window`` attention rows per head and layer at prefill (window x T numbers per head for the moment, N of
    which stay), one sort per layer, and one copy of each layer's cache.

    Parameters: ``keep_ratio`` (share of the visual entries kept) or ``keep_count`` (entries per prompt and layer),
    ``window`` (prompt tokens; 64 in kvpress), ``kernel`` (entries, odd; 5 there).

    ```bibtex
    @inproceedings{li2024snapkv,
      title={{SnapKV}: {LLM} Knows What You are Looking for Before Generation},
      author={Li, Yuhong and Huang, Yingbing and Yang, Bowen and Venkitesh, Bharat and Locatelli, Acyr and Ye, Hanchen
              and Cai, Tianle and Lewis, Patrick and Chen, Deming},
      booktitle={Advances in Neural Information Processing Systems (NeurIPS)},
      year={2024},
      note={arXiv:2404.14469}
    }
    ```
    """

    name: ClassVar[str] = "snapkv"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROMPT_WINDOW})

    window: int = Field(default=64, ge=1, description="last prompt tokens whose attention ranks")
    kernel: int = Field(default=5, ge=1, description="entries that are averaged to smooth the ranking; odd")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(complaint("kernel of strategy 'snapkv'", "be odd", kernel, "it has a middle"))
        return kernel

    def wants_window(self) -> int:
        """As ``window`` says."""
        return self.window

    def per_head(self, site: StepSite) -> Tensor:
        """float32 [B, H_kv, N]: what each key/value head ranks by."""
        import torch

        rows = site.prompt_window.float().masked_fill(~site.valid.unsqueeze(1), 0.0)
        if not rows.shape[2]:
            return rows[:, : site.shape.n_kv_heads]
        smooth = torch.nn.functional.avg_pool1d(rows, self.kernel, stride=1, padding=self.kernel // 2)
        return smooth.unflatten(1, (site.shape.n_kv_heads, -1)).mean(dim=2)

    def score(self, site: StepSite) -> Tensor:
        """Mean over key/value heads."""
        return self.per_head(site).mean(dim=1)
