"""``divprune``: of identical tokens, which ``newline_equivalent`` lists, the first stands for all."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site
from tokentrim.contracts.sites import Need
from tokentrim_strategies.divprune import DivPrune


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features = inputs["features"].unsqueeze(0)
    site = layer_site((features.shape[1],), {Need.FEATURES: features})
    strategy, count = DivPrune(keep_count=params["budget"]), counts_tensor(params["budget"])
    order, kept = strategy.order(site, count)[0], strategy.select(site, count).kept[0]
    same: list[int] = params.get("newline_equivalent", [])
    for token in same:
        order[order == token], kept[kept == token] = same[0], same[0]
    return {"order": order, "kept": kept}
