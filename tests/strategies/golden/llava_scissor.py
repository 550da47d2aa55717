"""``scissor``: the components of both rounds, who joins which, and the tokens that go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, video_grid
from tokentrim import Need
from tokentrim_strategies.scissor import Scissor


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    frames, patches, _ = inputs["features"].shape
    n = frames * patches
    features = inputs["features"].flatten(0, 1).unsqueeze(0)
    site = layer_site((n,), {Need.FEATURES: features, Need.GRID: video_grid(frames, 1, patches)})
    strategy = Scissor(tau=params["tau"])
    found, chosen = strategy.components(site), strategy.select(site, counts_tensor(n))
    assert chosen.kept.tolist() == found.kept.tolist()
    spatial = _numbered(found.frames[0]).view(frames, patches)
    spatial = spatial - torch.cat([spatial.new_zeros(1), spatial.amax(dim=1)[:-1] + 1]).unsqueeze(1)
    return {
        "spatial": spatial,
        "spatial_counts": spatial.amax(dim=1) + 1,
        "temporal": _numbered(found.whole[0]),
        "assigned": found.assigned[0],
        "tokens": chosen.features[0],
    }


def _numbered(stands: Tensor) -> Tensor:
    """The number of each one's component, in the order of those that stand for them."""
    return torch.unique(stands, return_inverse=True)[1]
