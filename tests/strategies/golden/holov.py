"""``holov`` on the cases of its authors' code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim.contracts.sites import Need
from tokentrim_strategies.holov import HoloV

LEFT_OUT = {"sequence": "a selection is a set: tokens go on in raster order, and nothing fills up what a crop lost"}


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """The tokens that stay; the code for Qwen takes the mean over heads before."""
    rows = inputs["attention"].unsqueeze(0) if params["qwen"] else inputs["attention"]
    site = layer_site((rows.shape[-1],), {Need.VISION_ROWS: rows[None, None]})
    strategy = HoloV(keep_count=params["budget"], crops=params["crops"], total="released")
    return {"kept": strategy.select(site, counts_tensor(params["budget"])).kept[0]}
