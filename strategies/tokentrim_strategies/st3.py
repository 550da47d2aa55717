"""``st3``: fewer visual tokens with depth, and fewer with every step of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

from pydantic import Field

from tokentrim import Need, Parts, PositionPolicy, Stage, Strategy, unknown_name
from tokentrim_strategies.pvtp import PVTP, PVTPParameters
from tokentrim_strategies.vta import VTA, VTAParameters

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # By cost, not the paper's values: 30 % of the visual KV, a third of the prefill's FLOPs.
        "llava-1.5-7b": {"start": 2, "stride": 11, "prune_ratio": 0.56},
        "llava-1.5-13b": {"start": 2, "stride": 14, "prune_ratio": 0.55},
        # Where to cut: calibrated by us on the testbed's calibration questions; how much: 30 % of the visual KV.
        "testbed": {"start": 2, "stride": 5, "prune_ratio": 0.74},
        "testbed-qwen2.5-vl": {"start": 3, "stride": 8, "prune_ratio": 0.86},
        "testbed-llava-next": {"start": 3, "stride": 8, "prune_ratio": 0.86},
        # What was the default before entries might return: memory goes on falling while the answer grows.
        "evicting": {"ranking": "accumulated", "evict": True},
    }
)
"""Parameters per model, calibrated by us, and ``evicting``, for any model."""


class ST3(PVTPParameters, VTAParameters, Strategy):
    """Spatial-temporal trimming: :class:`PVTP` during prefill and :class:`VTA` during decoding, as one strategy.

    The formulas, the failures and the costs are those of the two parts. A layer whose prefill kept G tokens sees
    ``ceil(G gamma(t))`` of them at decode step t. The first new token depends on the spatial part alone.

    By default all G stay in memory, and each step chooses anew which of them it sees, by its own attention: at equal
    memory that lost least on calibration questions, next to nothing where eviction for good lost 4 to 7 points
    (docs/results/st3.md). So memory is what the spatial part leaves, 30 % of the visual KV under the presets, and does
    not fall while the answer grows; choosing costs one attention row per layer and step, and here no step is faster for
    it than under ``pvtp`` alone, which answers as well. ``evict=True`` (the preset ``evicting``) frees memory at every
    step instead: for long answers that leave the picture behind, and many rows at once.

    Only the abstract, the opening and third-party readings of the paper were available to us, and no code exists:
    the two parts list what is known and what is ours. Its headline, about twice as fast with about 30 %
    of the KV cache, does not determine start, stride and ratio; a whole curve of them fits, nor whether entries may
    return. The presets are calibrated by us, not the paper's, and results must be labelled with the values used.

    Parameters: those of ``pvtp`` (``start``, ``stride``, ``prune_ratio``, ``rule``, ``query``, ``heredity``) and of
    ``vta`` (``attenuation``, ``horizon``, ``floor``, ``every``, ``ranking``, ``evict``).

    ```bibtex
    @inproceedings{zhuang2025st3,
      title={{ST$^3$}: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token Trimming},
      author={Zhuang, Jiedong and Lu, Lu and Dai, Ming and Hu, Rui and Chen, Jian and Liu, Qiang and Hu, Haoji},
      booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
      volume={39}, number={10}, pages={11049--11057},
      year={2025},
      doi={10.1609/aaai.v39i10.33201},
      note={arXiv:2412.20105}
    }
    ```
    """

    name: ClassVar[str] = "st3"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = PVTP.needs | VTA.needs
    budget_knob: ClassVar[str | None] = "prune_ratio"

    positions: PositionPolicy = Field(default="keep", description="position ids of kept tokens after pruning")
    # Unlike that of vta alone, which would free nothing so; here the spatial part has freed memory before.
    evict: bool = Field(default=False, description="whether what is not chosen is gone; else it may return")

    @classmethod
    def preset(cls, name: str) -> ST3:
        """The values calibrated by us for a model, such as ``"llava-1.5-7b"``, or ``"evicting"``, for any."""
        if name not in PRESETS:
            raise unknown_name("preset of strategy 'st3'", name, PRESETS)
        return cls(**PRESETS[name])

    def parts(self) -> Parts:
        """PVTP and VTA with these parameters."""
        spatial = self.model_dump(include={"positions", *PVTPParameters.model_fields})
        temporal = self.model_dump(include={*VTAParameters.model_fields})
        return Parts((PVTP(**spatial),), VTA(**temporal))

    def needed(self) -> frozenset[Need]:
        """What the two parts ask for as configured."""
        spatial, temporal = self.spatial_parts, self.temporal_part
        return frozenset().union(*(part.needed() for part in spatial), temporal.needed() if temporal else ())
