"""PruMerge: attention with all heads joined, over the patches and [CLS], which stands first in the inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.sites import Need
from tokentrim_strategies.prumerge import PruMerge

LEFT_OUT = {"neighbours": "a selection says what stands at the kept places, not of which tokens it was made"}


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    keys, features = inputs["k"], inputs["features"]
    n, width = features.shape
    attention = (inputs["q"] @ keys.T * width**-0.5).softmax(dim=-1)[:, 1:]
    site = layer_site(
        (n,),
        {
            Need.VISION_WIDE: attention[None, None],
            Need.VISION_KEYS: keys[None, None, 1:],
            Need.VISION_HIDDEN: features[None],
            Need.HIDDEN: features[None],
            Need.GRID: raster_grid(1, n),
        },
    )
    budget: dict[str, Any] = {} if params["adaptive"] else {"keep_count": int(n * params["ratio"]) + 1}
    strategy = PruMerge(plus=params["plus"], order="attention", positions="renumber", **budget)
    selection = strategy.select(site, counts_tensor(budget.get("keep_count", n)))
    selection.check((n,), static=None)
    selection.check_indices((n,))
    assert selection.features is not None
    order = selection.kept[0, :-1]  # the last one is the sum of all that goes
    return {"order": order, "kept": order, "tokens": selection.features[0]}
