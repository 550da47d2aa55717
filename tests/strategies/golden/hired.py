"""HiRED: thumbnail and tiles of a case lie one after another; [CLS] is the first column of the attention rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.hired import HiRED

LEFT_OUT = {"sequence": "what the release makes of the chosen tokens when it lays out the tiles, height for width"}


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    rows = inputs["cls_attn_22"]
    tiles, n = len(rows), rows.shape[-1] - 1
    both = torch.stack([rows, inputs.get("cls_attn_0", rows)])[..., 1:]
    side = math.isqrt(n)
    place, zero = torch.arange(n).repeat(tiles), torch.zeros(tiles * n, dtype=torch.long)
    tile = torch.arange(tiles).repeat_interleave(n)
    columns = (zero, zero, tile.clamp(max=1), tile, place // side, place % side, zero + side, zero + side)
    site = layer_site(
        (tiles * n,),
        {
            Need.VISION_ROWS: both.transpose(1, 2).flatten(2)[None],
            Need.GRID: Grid(*(column.unsqueeze(0) for column in columns)),
        },
    )
    budget = int(tiles * n * params["rate"])
    strategy = HiRED(keep_count=budget, alpha=params.get("alpha", 0.5), total="released")
    selection = strategy.select(site, counts_tensor(budget))
    selection.check((tiles * n,), static=None, limit=(budget,))
    selection.check_indices((tiles * n,))
    found = {"kept": selection.kept[0]}
    if params["next"]:
        found["counts"] = torch.bincount(selection.kept[0] // n, minlength=tiles)
    return found
