"""``text-only``: withdraw the image at one boundary."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokentrim import ModelShape, Schedule, Stage
from tokentrim_strategies._keeping import Withdrawing, check_boundary


class TextOnly(Withdrawing):
    """Drop all visual tokens at boundary ``k``: layers 0..k-1 see the image, the rest only what text took from it.

    Count: 0 at boundary k. This is Visual Tokens Withdrawal (VTW) at a boundary that is given rather than searched,
    and FastV with nothing kept. With ``k = 0`` the model never sees the image, which measures how much of a task
    language alone solves. It fails on whatever needs the image late (captions, documents, small text) and, for a
    small k, on everything visual. Cost: none; layers below k still cache the visual tokens.

    Parameters: ``k``, the boundary. The default 2 is ours, for a control next to FastV; VTW's released code withdraws
    near half of the depth (15 or 16 of 32 layers, 20 of 40) and keeps the original position ids, as we do.

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

    name: ClassVar[str] = "text-only"
    stage: ClassVar[Stage] = "prefill"

    k: int = Field(default=2, ge=0, description="boundary at which every visual token goes; 0 = before any layer")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Nothing passes boundary k."""
        check_boundary(self, "k", self.k, shape)
        return Schedule.of({self.k: 0})
