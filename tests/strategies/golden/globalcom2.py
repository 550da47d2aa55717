"""``globalcom2``: the code's tokens are numbered by tile, padding included; a site has the unpadded plane of all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim import AnyResolution, Grid, Pictures
from tokentrim.contracts.sites import Need
from tokentrim_strategies.globalcom2 import GlobalCom2


def tiled(side: int, down: int, across: int, height: int, width: int) -> tuple[Grid, Tensor]:
    """The grid of one image, and the number ``tile * side * side + patch`` of every token."""
    plane = AnyResolution(pixels=336, side=side, resolutions=((336 * down, 336 * across),)).assembled(height, width)
    row, col = (
        part.flatten() for part in torch.meshgrid(torch.arange(plane.rows), torch.arange(plane.cols), indexing="ij")
    )
    y, x = row + plane.top, col + plane.left
    tile = y // side * across + x // side + 1
    patch, nothing = torch.arange(side * side), torch.zeros(side * side, dtype=torch.int64)
    parts = (
        (nothing, row * 0), (nothing, row * 0), (nothing, row * 0 + 1), (nothing, tile), (patch // side, row),
        (patch % side, col), (nothing + side, row * 0 + plane.rows), (nothing + side, row * 0 + plane.cols),
    )  # fmt: skip
    numbers = torch.cat([patch, tile * side * side + y % side * side + x % side])
    return Grid(*(torch.cat(pair).unsqueeze(0) for pair in parts)), numbers


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    scores, (down, across), (width, height) = inputs["cls_scores"], params["grid"], params["image_size"]
    patches = scores.shape[1]
    grid, numbers = tiled(math.isqrt(patches), down, across, height, width)
    n = len(numbers)
    site = layer_site((n,), {Need.VISION_LOGITS: scores.flatten()[numbers][None, None, None], Need.GRID: grid})
    strategy, count = GlobalCom2(keep_ratio=params["ratio"], total="released"), counts_tensor(n)
    kept = numbers[strategy.select(site, count).kept[0]]
    _, share = strategy.shares(site, Pictures.of(site), count)
    thumbnail, tiles = kept[kept < patches], kept[kept >= patches]
    return {
        "thumbnail": thumbnail[scores[0][thumbnail].argsort(descending=True, stable=True)],  # in the code's order
        "scales": share[1:].float(),
        "counts": torch.bincount(tiles // patches - 1, minlength=down * across),
        "kept": tiles,
    }
