"""``evs`` on the cases of vLLM's code, which says the share that goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, video_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.evs import EVS

LEFT_OUT = dict.fromkeys(
    ("positions", "prompt_positions", "delta"),
    "position ids are the engine's, which lets the text go on where it does without pruning",
)


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    frames, height, width = params["thw"]
    grid = video_grid(frames, height // params["merge"], width // params["merge"])
    n = len(inputs["features"])
    site = layer_site((n,), {Need.FEATURES: inputs["features"][None], Need.GRID: grid})
    found = EVS(keep_ratio=1 - params["q"]).select(site, counts_tensor(n))
    return {"kept": found.kept[0], "count": torch.tensor(found.counts[0])}
