"""``cdpruner`` with CLIP's sign: tiles of the authors' batch are tiles of one row; copies stand for each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, tiled_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.cdpruner import CDPruner


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    tiles, patches = inputs["features"].shape[:2]
    features, images = (inputs[name].flatten(0, 1)[None] for name in ("features", "image_embeds"))
    site = layer_site((tiles * patches,), {Need.FEATURES: features, Need.GRID: tiled_grid(tiles, patches)})
    text, strategy = inputs["text_embeds"][None], CDPruner(sign="minus")
    asked = torch.ones(text.shape[:2], dtype=torch.bool)
    relevance = strategy.relevance(images, text, asked, site.valid)
    pictures, order = strategy.orders(site, relevance, counts_tensor(tiles * params["budget"]))
    kept = pictures.joined(order)[0].nonzero().view(tiles, -1) - torch.arange(tiles).unsqueeze(1) * patches
    for first, second in params.get("duplicates", []):
        order[order == second], kept[kept == second] = first, first
    return {"order": order, "kept": kept, "relevance": relevance.view(tiles, patches)}
