"""FitPrune: peaks as the engine sums them, of the queries and keys that are left; and one layer of the calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import layer_site, model_shape
from tokentrim.calibrate.fitprune import Deleting, deletable, received
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.engine.seams.attention_rows import peaks
from tokentrim_strategies.fitprune import FitPrune


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if not params.get("image_tokens"):
        return _tables(inputs["percent"].tolist())
    return _calibration(inputs, params) if "alpha" in params else _stages(inputs, params)


def _tables(percents: list[int]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for percent in percents:
        layers = FitPrune(flops_cut=percent / 100).schedule(model_shape(), 576).per_layer(32, 576)
        found[f"delete_{percent}"] = -torch.tensor([*layers, layers[-1]]).diff()
    return found


def _stages(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    left = torch.arange(params["image_tokens"])
    found: dict[str, Tensor] = {}
    for layer, delete in enumerate(params["delete"]):
        site = _site(inputs["q"][layer], inputs["k"][layer], params, left, boundary=layer + 1)
        scores = FitPrune().score(site)
        kept = top_selection(scores, (len(left) - delete,), (len(left),)).kept[0]
        if delete:
            found[f"score_{layer}"] = scores[0]
            mask = torch.ones(len(left), dtype=torch.bool)
            mask[kept] = False
            found[f"deleted_{layer}"] = left[mask]
        left = left[kept]
        found[f"kept_{layer}"] = left
    found["counts"] = torch.tensor([len(found[f"kept_{layer}"]) for layer in range(len(params["delete"]))])
    return found


def _calibration(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    n, n_text = params["image_tokens"], inputs["q"].shape[2] - params["image_start"] - params["image_tokens"]
    site = _site(inputs["q"][0], inputs["k"][0], params, torch.arange(n), boundary=1)
    size = torch.tensor([n])
    image, question = received(site, size)
    # The release takes the mean over the text, here and in what it was without pruning.
    whole = torch.tensor([[params["mass_self"], params["mass_cross"] * n_text]])
    kept = Deleting.of(params["alpha"], 1, {1: whole}).select(site, size).kept[0]
    least = whole[0] * (1 - params["alpha"])
    return {
        "deleted": torch.tensor([token for token in range(n) if token not in kept.tolist()]),
        "delete_self": deletable(image, size, least[:1])[0],
        "delete_cross": deletable(question, size, least[1:])[0],
        "mass_self": image.sum(),
        "mass_cross": question.sum() / n_text,
    }


def _site(query: Tensor, key: Tensor, params: dict[str, Any], left: Tensor, boundary: int) -> LayerSite:
    """The tokens ``left`` of the image, with what stands in front of it and behind."""
    start, n = params["image_start"], params["image_tokens"]
    total = query.shape[1]
    columns = torch.cat([torch.arange(start), left + start, torch.arange(start + n, total)])
    places = torch.arange(len(columns))
    visual = (places >= start) & (places < start + len(left))
    groups = torch.stack([visual, places >= start + len(left)]).unsqueeze(0)
    query, key = query[:, columns].unsqueeze(0), key[:, columns].unsqueeze(0)
    found = peaks(query, key, query.shape[-1] ** -0.5, groups, None, lambda heads: heads)
    return layer_site((len(left),), {Need.HEAD_PEAKS: found[:, :, visual]}, boundary=boundary)
