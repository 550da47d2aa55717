"""``vidcom2`` on the cases of its authors' code. Line ends are structure here: no strategy is asked about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, video_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.vidcom2 import VidCom2

LEFT_OUT = {"sequence": "where kept tokens and line ends stand is the engine's: in the order of the raster"}


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features, frames, patches = inputs["features"], params["frames"], params["patches"]
    n = len(features)
    site = layer_site((n,), {Need.FEATURES: features[None], Need.GRID: video_grid(frames, 1, patches)})
    kept = VidCom2(keep_ratio=params["ratio"], total="released").select(site, counts_tensor(n)).kept[0]
    return {"kept": kept, "counts": torch.bincount(kept // patches, minlength=frames)}
