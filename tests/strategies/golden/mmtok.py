"""``mmtok``: of every case what it has, the choice, the question's words, or the patches in padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.mmtok import MMTok, keywords


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "question" in inputs:
        text = bytes(inputs["question"].tolist()).decode()
        said = " ".join(text[first:last] for first, last in keywords(text)) or text
        return {"keywords": torch.tensor(list(said.encode()))}
    if "size" in inputs:
        site = layer_site((576,), {Need.GRID: raster_grid(24, 24)})
        return {"padding": MMTok(picture=tuple(inputs["size"].tolist())).in_padding(site)[0].nonzero()[:, 0]}
    text, features, vectors = (inputs[name].unsqueeze(0) for name in ("text", "features", "clip"))
    n, every = features.shape[1], torch.ones(1, text.shape[1], dtype=torch.bool)
    side = round(n**0.5)
    data = {
        Need.FEATURES: features,
        Need.VISION_HIDDEN: vectors,
        Need.TEXT_EMBEDS: (text, every),
        Need.TEXT_IDS: (every.long(), every, every),
        Need.GRID: raster_grid(side, side) if side * side == n else raster_grid(1, n),
    }
    strategy = MMTok(
        alpha=params["alpha"],
        text_temperature=params["tv_temp"],
        image_temperature=params["vv_temp"],
        picture=(2, 1) if "padding" in inputs else None,
    )
    site, count = layer_site((n,), data), counts_tensor(params["budget"])
    if "padding" in inputs:
        assert strategy.in_padding(site)[0].nonzero()[:, 0].tolist() == inputs["padding"].tolist()
    return {"order": strategy.orders(site, count)[1][0], "kept": strategy.select(site, count).kept[0]}
