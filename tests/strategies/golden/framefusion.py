"""``framefusion``, call by call: what stays, what it has become, and when all is done.

Layers add nothing here; each head's row is one softmax over what is left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim import Grid, Need, PromptInfo
from tokentrim.engine.tokens.stream import merge_features
from tokentrim_strategies.framefusion import FrameFusion


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    strategy = FrameFusion(cost=params["cost"], similarity=params["similarity"], ratio=params["ratio"], layers=28)
    patch = inputs["patch_type"].long()
    visual, text = (patch >= 0).nonzero()[:, 0], (patch < 0).nonzero()[:, 0]
    hidden, frames = inputs["hidden"][visual], torch.arange(len(visual)) // params["patches"]
    (progress,) = state = strategy.begin(PromptInfo((len(visual),), model_shape()))
    found: dict[str, Tensor] = {}
    call = 0
    while not progress.done and call < params["calls"]:
        n, zero = len(visual), torch.zeros_like(visual)
        grid = Grid(*(part.unsqueeze(0) for part in (zero, frames, zero, zero, zero, patch[visual], zero + 1, zero)))
        data = {Need.HIDDEN: hidden.unsqueeze(0), Need.GRID: grid}
        if call:
            there = inputs["rows"][:, torch.cat([visual, text])]
            data[Need.LAST_ROW] = (there / there.sum(dim=1, keepdim=True))[:, :n].unsqueeze(0)
        site = layer_site((n,), data, boundary=call)
        object.__setattr__(site, "state", state)
        chosen = strategy.select(site, counts_tensor(n))
        kept = chosen.kept[0]
        hidden = merge_features(hidden.unsqueeze(0), chosen)[0] if chosen.merges else hidden[kept]
        visual, frames = visual[kept], frames[kept]
        found[f"kept_{call}"] = torch.cat([text, visual])
        found[f"action_{call}"] = torch.tensor(int(Need.LAST_ROW in site.cache))
        call += 1
    whole = inputs["hidden"].index_copy(0, visual, hidden)
    return {
        **found,
        "hidden": whole[torch.cat([text, visual]).sort().values],
        "calls": torch.tensor(call),
        "sparsity": torch.tensor(progress.merged),
    }
