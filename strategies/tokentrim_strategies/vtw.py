"""``vtw``: visual tokens withdrawal, every visual token dropped at one depth."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tokentrim import ModelShape, ReplacedBy, Schedule, Stage, StrategyError, complaint, keep_count
from tokentrim_strategies._keeping import ShareOrNone, Withdrawing, check_boundary


class Withdrawal(Withdrawing):
    """Drop every visual token at boundary K: layers 0..K-1 see the image, the rest what text took from it.

    Count: 0 at boundary K, so the layer-mean is ``N K / L`` tokens. No score and no attention row; layers below K
    cache the visual tokens, layers from K on hold text alone. Original position ids stay, as in the released code's
    default. VTW(K) is FastV(K) with nothing kept.

    K is what the method is about. The authors search it per model: the first k (from 5 on) at which withdrawal moves
    the next-token distribution by a mean KL divergence, KL(withdrawn || full), of at most eta (0.003 for the 7B
    model, 0.0005 for 13B) over a few samples of a task. What the released code ships instead disagrees with itself
    (15 or 16 of 32 layers, 20 of 40); we take what these share as the default, half of the depth: ``depth = 0.5``,
    16 of 32 and 20 of 40. Give ``k`` where a search has been made.

    The control ``text-only`` drops everything at a boundary as well, and is another thing: it stands at the boundary
    of the method that it is compared with, to show what text had taken by then, and has no budget. This one is the
    method, at a depth of its own, with that depth as its budget knob.

    When it fails: on whatever needs the image late (captions, documents, small text, grounding); and below about half
    of the tokens on nearly everything, because a smaller budget means an earlier withdrawal: 192, 128 and 64 of 576
    tokens would need K = 10.7, 7.1 and 3.6 of 32. K found on one task need not suit another.

    Cost: none. Budgets are met in steps of 1/L.

    Parameters: ``depth``, share of the layers that see the image (``K = floor(depth L)``), or ``k``, the boundary
    itself, in its place; both at once is an error.

    ```bibtex
    @inproceedings{lin2025vtw,
      title={Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference},
      author={Lin, Zhihang and Lin, Mingbao and Lin, Luxi and Ji, Rongrong},
      booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
      year={2025},
      note={arXiv:2405.05803}
    }
    ```
    """

    name: ClassVar[str] = "vtw"
    stage: ClassVar[Stage] = "prefill"
    budget_knob: ClassVar[str | None] = "depth"

    depth: Annotated[ShareOrNone, ReplacedBy("k", "boundary")] = Field(
        default=0.5, description="share of the layers that see the image"
    )
    k: int | None = Field(default=None, ge=0, description="boundary at which every visual token goes, instead of depth")

    def boundary_of(self, n_layers: int) -> int:
        """K for a model with ``n_layers`` decoder layers; ``n_layers`` itself where nothing is withdrawn."""
        if self.k is not None:
            return self.k
        if self.depth is None:
            raise StrategyError(complaint("strategy 'vtw'", "give depth or k", None, "set exactly one of the two"))
        return keep_count(self.depth, n_layers)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Nothing passes boundary K; nothing is planned where ``depth`` leaves every layer its tokens."""
        if self.depth == 1:
            return Schedule()
        boundary = self.boundary_of(shape.n_layers)
        check_boundary(self, "k", boundary, shape)
        return Schedule.of({boundary: 0})
