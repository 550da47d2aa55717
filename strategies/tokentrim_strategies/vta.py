"""``vta``: visual-token annealing, the temporal part of ST^3."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import BaseModel, Field

from tokentrim import ModelShape, Need, StepSite, TemporalScorer, keep_count
from tokentrim_strategies._keeping import Share

if TYPE_CHECKING:
    from torch import Tensor

# Cosines and exponentials are rounded: where the true product is a whole number (a cosine at half of the horizon), the
# float may lie just below. 1e-9 of a token is far above that error and far below any true distance that matters.
_GUARD: Final = 1e-9


class VTAParameters(BaseModel):
    """Parameters of :class:`VTA`, which :class:`~tokentrim_strategies.st3.ST3` shares."""

    attenuation: Literal["linear", "cosine", "exponential"] = Field(
        default="cosine", description="shape of gamma(t), the share of the prefill's visual entries that stays"
    )
    horizon: int = Field(default=64, ge=1, description="decode steps after which linear and cosine reach zero")
    floor: Share = Field(default=0.0, description="share of the prefill's entries that always stays")
    every: int = Field(default=1, ge=1, description="evict only at decode steps that are multiples of this")
    ranking: Literal["current", "frozen"] = Field(
        default="current", description="rank by the current token's attention, or by the last prompt token's"
    )


class VTA(VTAParameters, TemporalScorer):
    """Let every layer's cached visual entries fade out as the answer grows; what leaves the cache is gone for good.

    Entries that a layer with n of them after prefill may hold at decode step t = 1, 2, ... (1 = the first forward
    after prefill), with T the horizon and t rounded down to a multiple of ``every``:
    ``floor(n max(gamma(t), floor))``, where gamma(0) = 1 and

    - ``linear``: ``max(0, 1 - t/T)``;
    - ``cosine``: ``(1 + cos(pi min(t, T)/T)) / 2``;
    - ``exponential``: ``exp(-3t/T)``, which is 0.05 at the horizon and goes on falling.

    Score: attention of the current token in this layer, mean over heads (``ranking="current"``), or that of the last
    prompt token at prefill (``"frozen"``).

    Known from the paper: the visual tokens of each layer become fewer as generation proceeds, by an attenuation
    function of which several were compared. Ours, as its full text and code were not available to us: the three
    functions, their constants and the default (U5), the ranking and permanent eviction (U6), eviction in chunks
    (``every``, U9; 1 is the formula itself), no effect on the first new token (U10).

    When it fails: long answers that return to the image (captions, transcriptions) lose it at the horizon; set
    ``horizon`` to max_new_tokens, or a ``floor``. It saves memory and bandwidth, hardly any arithmetic, lowers no
    peak, and does nothing for answers of one token.

    Cost: ``current``: one attention row per layer and step, and a copy of as many entries as leave.
    ``frozen``: one row per layer, once, at prefill; an eviction then moves an offset.

    ```bibtex
    @inproceedings{zhuang2025st3, booktitle={AAAI}, year={2025}, doi={10.1609/aaai.v39i10.33201},
      title={{ST$^3$}: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token Trimming},
      author={Zhuang, Jiedong and Lu, Lu and Dai, Ming and Hu, Rui and Chen, Jian and Liu, Qiang and Hu, Haoji}}
    ```
    """

    name: ClassVar[str] = "vta"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.PROMPT_ROW})
    budget_knob: ClassVar[str | None] = "floor"

    def needed(self) -> frozenset[Need]:
        """The one row that ``ranking`` reads."""
        return frozenset({Need.LAST_ROW if self.ranking == "current" else Need.PROMPT_ROW})

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """``floor(n_prefill * max(gamma(step), floor))``; the same for every layer."""
        step -= step % self.every
        return max(self._annealed(step, n_prefill), keep_count(self.floor, n_prefill))

    def _annealed(self, step: int, n: int) -> int:
        """``floor(n * gamma(step))``: exact for linear, guarded for the transcendental two."""
        if self.attenuation == "linear":
            return keep_count(Fraction(max(0, self.horizon - step), self.horizon), n)
        if self.attenuation == "cosine":
            gamma = (1 + math.cos(math.pi * min(step, self.horizon) / self.horizon)) / 2
        else:
            gamma = math.exp(-3 * step / self.horizon)
        return math.floor(n * gamma + _GUARD)

    def ranks_once(self) -> bool:
        """The prompt's row does not change."""
        return self.ranking == "frozen"

    def score(self, site: StepSite) -> Tensor:
        """Attention in this layer, mean over heads."""
        return (site.last_row if self.ranking == "current" else site.prompt_row).mean(dim=1)
