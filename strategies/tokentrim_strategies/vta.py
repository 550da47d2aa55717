"""``vta``: visual-token annealing, the temporal part of ST^3."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import Field

from tokentrim import NEW_TOKENS, ModelShape, Need, StepSite, TemporalScorer, keep_count
from tokentrim_strategies._blocks import Blocks
from tokentrim_strategies._keeping import Share

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

# Cosines are rounded: where the true product is a whole number (at half of the horizon), the float may lie just above.
# 1e-9 of a token is far above that error and far below any true distance that matters.
_GUARD: Final = 1e-9
_ROWS: Final = {"frozen": Need.PROMPT_ROW, "accumulated": Need.ACCUMULATED}


class VTAParameters(Blocks):
    """Parameters of :class:`VTA`, which :class:`~tokentrim_strategies.st3.ST3` shares."""

    attenuation: Literal["linear", "cosine", "exponential"] = Field(
        default="cosine", description="shape of gamma(t), the share of the prefill's visual entries that is seen"
    )
    horizon: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="decode steps after which linear and cosine reach zero; auto: the answer's largest length",
    )
    floor: Share = Field(default=0.0, description="share of the prefill's entries that is always seen")
    every: int = Field(default=1, ge=1, description="choose only at decode steps that are multiples of this")
    ranking: Literal["auto", "current", "previous", "block", "frozen", "accumulated"] = Field(
        default="auto", description="whose attention ranks: see the class; auto: accumulated if evict, else current"
    )
    evict: bool = Field(default=True, description="whether what is not chosen is gone; else it may return")

    def for_answer(self, new_tokens: int) -> Self:
        """With ``new_tokens`` for a horizon that is not given."""
        return self.model_copy(update={"horizon": new_tokens}) if self.horizon == "auto" else self

    @property
    def ranks_by(self) -> Literal["current", "previous", "block", "frozen", "accumulated"]:
        """``ranking``, where it is ``auto``: what kept most on calibration questions for what ``evict`` says."""
        if self.ranking == "auto":
            return "accumulated" if self.evict else "current"
        return self.ranking


class VTA(VTAParameters, TemporalScorer):
    """Let every layer see fewer of its cached visual entries as the answer grows.

    Entries that a layer with n of them after prefill sees at decode step t = 1, 2, ... (1 = the first forward
    after prefill), with T the horizon and t rounded down to a multiple of ``every``:
    ``max(ceil(n gamma(t)), floor(n floor))``, where gamma(0) = 1 and

    - ``linear``: ``max(0, 1 - t/T)``;
    - ``cosine``: ``(1 + cos(pi min(t, T)/T)) / 2``;
    - ``exponential``: ``exp(-3t/T)``, which is 0.05 at the horizon and goes on falling: its last entry stays.

    The best by attention, mean over heads (``ranking``): of the current token, in this layer (``current``), in layer
    l-1 (``previous``: ``V[l,t] <- V[l,t][Top(G, a[l-1,t])]``, the formula as it is quoted; layer 0 ranks by itself) or
    in the layer in front of the block of ``start`` and ``stride`` (``block``; layer 0 in front of ``start``); of the
    last prompt token, in this layer (``frozen``); of that and of all tokens since, summed (``accumulated``).
    ``evict=False`` chooses anew at each step among all that the spatial part left: what is not chosen stays in memory,
    unseen, and may return. It saves no memory, and no time here (what is hidden is read and masked). So it is the
    default of ``st3``, whose spatial part has freed memory before, and not of this part, which alone would free none.

    Known from the paper: the visual tokens of each layer become fewer as generation proceeds, by an attenuation
    function of which several were compared. Ours, as its full text and code were not available to us: the three
    functions and their constants; a horizon of the answer's length; rounding up, so that nothing leaves at the
    first step (rounding down costs 10 points on lists); the rankings but ``previous``, and which is the default:
    ``accumulated`` where entries leave, ``current`` where they may return, chosen on calibration questions; eviction
    for good, or not; chunks (``every``; 1 is the formula itself); no effect on the first new token.

    When it fails: long answers that return to the image (captions, transcriptions) lose it towards the horizon, and a
    second turn over the same cache sees what the first answer left, past its horizon nothing: set a ``floor``. It
    saves memory and bandwidth, hardly any arithmetic, lowers no peak, and does nothing for answers of one token.

    Cost: one attention row per ranking layer and step (``accumulated``: of every layer at every step), and a copy of as
    many entries as leave. ``frozen``: one row per layer, once, at prefill; an eviction then moves an offset.

    ```bibtex
    @inproceedings{zhuang2025st3, booktitle={AAAI}, year={2025}, doi={10.1609/aaai.v39i10.33201},
      title={{ST$^3$}: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token Trimming},
      author={Zhuang, Jiedong and Lu, Lu and Dai, Ming and Hu, Rui and Chen, Jian and Liu, Qiang and Hu, Haoji}}
    ```
    """

    name: ClassVar[str] = "vta"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, *_ROWS.values()})
    budget_knob: ClassVar[str | None] = "floor"

    def needed(self) -> frozenset[Need]:
        """The one row that ``ranking`` reads."""
        return frozenset({_ROWS.get(self.ranks_by, Need.LAST_ROW)})

    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """``max(ceil(n_prefill gamma(step)), floor(n_prefill floor))``; the same for every layer."""
        step -= step % self.every
        return max(self._annealed(step, n_prefill), keep_count(self.floor, n_prefill))

    def _annealed(self, step: int, n: int) -> int:
        """``ceil(n * gamma(step))``: exact for linear, guarded for cosine (an exponential is never a whole number)."""
        horizon = NEW_TOKENS if self.horizon == "auto" else self.horizon
        if self.attenuation == "linear":
            return math.ceil(Fraction(max(0, horizon - step), horizon) * n)
        if self.attenuation == "exponential":
            return math.ceil(n * math.exp(-3 * step / horizon))
        gamma = (1 + math.cos(math.pi * min(step, horizon) / horizon)) / 2
        return math.ceil(n * gamma - _GUARD)

    def evicts(self) -> bool:
        """As ``evict`` says."""
        return self.evict

    def row_layer(self, layer: int, shape: ModelShape) -> int:
        """The layer whose row ``ranking`` reads."""
        if self.ranks_by == "previous":
            return max(0, layer - 1)
        return self.in_front(layer, shape) if self.ranks_by == "block" else layer

    def ranks_once(self) -> bool:
        """The prompt's row does not change."""
        return self.ranks_by == "frozen"

    def score(self, site: StepSite) -> Tensor:
        """Attention, mean over heads."""
        if self.ranks_by == "frozen":
            return site.prompt_row.mean(dim=1)
        return (site.accumulated if self.ranks_by == "accumulated" else site.last_row).mean(dim=1)
