"""HiPrune: what tokens receive, from maps or given; the pictures of a case lie one after another in one prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.hiprune import HiPrune


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    (rows, cols), qwen = params["grid"], params["qwen"]
    received = torch.stack([_received(inputs[f"{name}_attention"], inputs, qwen) for name in ("mid", "deep")])
    images, n = received.shape[1:]
    site = layer_site(
        (images * n,),
        {Need.VISION_COLUMNS: received.view(1, 2, 1, -1), Need.GRID: raster_grid(rows, cols, images)},
    )
    kept = images * (round(params["ratio"] * n) if qwen else params["budget"] // images)
    selection = HiPrune(keep_count=kept, alpha=params["alpha"]).select(site, counts_tensor(kept))
    selection.check((images * n,), static=(kept,))
    selection.check_indices((images * n,))
    found = (selection.kept % n).view(images, -1)
    return {"kept": found[0] if qwen else found}


def _received(maps: Tensor, inputs: dict[str, Tensor], qwen: bool) -> Tensor:
    """[pictures, N]: attention that each visual token receives."""
    if not qwen:  # of 4-D maps the first query and the first key are [CLS]
        return maps if maps.dim() == 2 else maps.mean(dim=(1, 2))[:, 1:]
    if maps.dim() == 1:
        return maps.unsqueeze(0)
    merged = maps.mean(dim=0).mean(dim=0).view(-1, 4).mean(dim=1)
    return merged[inputs["reverse"].long()].unsqueeze(0)
