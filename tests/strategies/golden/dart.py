"""DART: one site with keys, states and the final norm; with the pivots in the order of the release, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim_strategies.dart import DART

LEFT_OUT = {"positions": "the engine's: original positions of what stays"}


class _Released(DART):
    """DART with the pivots in the order in which CPython lists a set of their columns."""

    start: int
    """Column of the first visual token, behind which the visual tokens and then the text stand without a gap."""

    def in_turn(self, site: LayerSite, image: Tensor, text: Tensor, behind: Tensor) -> Tensor:
        before = site.text_keys[0].shape[2] - int(behind)  # text in front of the image
        n = site.n_visual[0]
        columns = [self.start + place for place in image[0, : self.image_pivots].tolist()]
        columns += [self.start + n - before + place for place in text[0, : self.text_pivots].tolist()]
        return torch.tensor([[column - self.start + (before if column >= self.start + n else 0)
                              for column in list(set(columns))]])  # fmt: skip


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    start, n = params["image_start"], params["image_tokens"]
    hidden, keys, weight = inputs["hidden"], inputs["keys"], inputs["norm"]
    visual = torch.zeros(len(hidden), dtype=torch.bool)
    visual[start : start + n] = True
    real = torch.ones(1, len(hidden) - n, dtype=torch.bool)
    behind = (torch.arange(len(hidden))[~visual] >= start + n).unsqueeze(0)

    def norm(vectors: Tensor) -> Tensor:
        return weight * vectors * (vectors.square().mean(-1, keepdim=True) + params["eps"]).rsqrt()

    data = {
        Need.HIDDEN: hidden[visual].unsqueeze(0),
        Need.TEXT_HIDDEN: (hidden[~visual].unsqueeze(0), real, behind),
        Need.KEYS: keys[:, visual].unsqueeze(0),
        Need.TEXT_KEYS: (keys[:, ~visual].unsqueeze(0), real, behind),
        Need.FINAL_NORM: norm,
    }
    site = layer_site((n,), data, boundary=2)
    budget = params.get("budget") or params.get("next_budget")
    asked = {"keep_count": budget} if budget else {"keep_ratio": round(1 - params["reduction_ratio"], 6)}
    asked = {**asked, "image_pivots": params["pivots_image"], "text_pivots": params["pivots_text"]}
    found: dict[str, Tensor] = {}
    for name, strategy in (("kept_sorted_pivots", DART(**asked)), ("kept", _Released(**asked, start=start))):
        count = strategy.schedule(model_shape(), n).count_at(2)
        found[name] = strategy.select(site, counts_tensor(count)).kept[0]
    image, text, _ = strategy.by_norm(site)
    found["pivots_image"] = image[0, : params["pivots_image"]] + start
    found["pivots_text"] = text[0, : params["pivots_text"]] + n
    found["pivot_order"] = strategy.in_turn(site, image, text, behind.sum(1, keepdim=True))[0]
    found["pivot_order"] = found["pivot_order"] + torch.where(found["pivot_order"] < n, start, 0)
    return found
