"""``scope``: tiles of the authors' batch are the tiles of one row here, and each keeps ``budget // tiles``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, tiled_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.scope import SCOPE


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features, attention = inputs["features"], inputs["cls_attn"]
    tiles, patches = features.shape[:2]
    rows = attention.transpose(0, 1).flatten(1)[None, None]
    data = {Need.VISION_HIDDEN: features.flatten(0, 1)[None], Need.VISION_ROWS: rows}
    site = layer_site((tiles * patches,), {**data, Need.GRID: tiled_grid(tiles, patches)})
    strategy = SCOPE(alpha=params["alpha"], combined="add" if params["combined"] == "add" else "multiply")
    count = counts_tensor(params["budget"] // tiles * tiles)
    kept = strategy.select(site, count).kept[0].view(tiles, -1)
    return {
        "order": strategy.orders(site, count)[1],
        "kept": kept - torch.arange(tiles).unsqueeze(1) * patches,
        "tokens": features.flatten(0, 1)[kept],
    }
