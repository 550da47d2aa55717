"""VisionZip: the pictures of a case lie one after another in one prompt; the [CLS] token, which stays, is put aside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.visionzip import VisionZip


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    rows, keys, hidden = inputs["cls_attn"], inputs["keys"], inputs["hidden"]
    images, n = len(hidden), hidden.shape[1] - 1
    patches = hidden[:, 1:].flatten(0, 1).unsqueeze(0)
    dominant, contextual = params["dominant"] - 1, params["contextual"]
    site = layer_site(
        (images * n,),
        {
            Need.VISION_ROWS: rows[:, :, 1:].transpose(0, 1).flatten(1)[None, None],
            Need.VISION_KEYS: keys[:, :, 1:].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[None, None],
            Need.VISION_HIDDEN: patches,
            Need.HIDDEN: patches,
            Need.GRID: raster_grid(1, n, images),
        },
    )
    kept = images * (dominant + contextual)
    strategy = VisionZip(keep_count=kept, contextual_count=images * contextual, merged="behind", positions="renumber")
    selection = strategy.select(site, counts_tensor(kept))
    selection.check((images * n,), static=(kept,))
    selection.check_indices((images * n,))
    assert selection.target is not None
    assert selection.features is not None
    first, last = selection.kept[0].split([images * dominant, images * contextual])
    goes = selection.target[0].view(images, n)
    merged = ~torch.isin(torch.arange(images * n), selection.kept[0]).view(images, n)
    slots = goes[merged].view(images, -1) - images * dominant - contextual * torch.arange(images).unsqueeze(1)
    vectors = selection.features[0].split([images * dominant, images * contextual])
    tokens = [hidden[:, :1], *(part.view(images, -1, hidden.shape[-1]) for part in vectors)]
    return {
        "dominant": first.view(images, -1) % n,
        "targets": last.view(images, -1) % n,
        "merged": merged.nonzero()[:, 1].view(images, -1),
        "merged_into": slots,
        "tokens": torch.cat(tokens, dim=1),
    }
