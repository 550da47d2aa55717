"""``prunevid``: scenes, the tokens of the first stage in the order of the code, and the second stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape, video_grid
from tokentrim import Need, PromptInfo
from tokentrim_strategies._video import scenes_of
from tokentrim_strategies.prunevid import PruneVid


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "labels" in inputs:
        scenes = [scenes_of(row) for row in inputs["labels"].tolist()]
        return {f"window_sizes_{row}": torch.tensor(one) for row, one in enumerate(scenes)}
    return _second(inputs["attention"], params) if "attention" in inputs else _first(inputs["features"], params)


def _first(features: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    frames, patches, _ = features.shape
    n = frames * patches
    strategy = PruneVid(tau=params["tau"], segments=params["segment_ratio"], clusters=params["cluster_ratio"])
    data = {Need.FEATURES: features.flatten(0, 1).unsqueeze(0), Need.GRID: video_grid(frames, 1, patches)}
    site = layer_site((n,), {**data, Need.RANDOM: None})
    site = replace(site, state=strategy.begin(PromptInfo((n,), model_shape())))
    found, chosen = strategy.merged(site), strategy.select(site, counts_tensor(n))
    numbers = torch.arange(n)
    left = numbers[found.target == numbers]
    order = left[(found.group * n + found.rank)[left].argsort()]
    place = found.target.unsqueeze(1).expand(-1, features.shape[2])
    means = torch.zeros(n, features.shape[2]).scatter_reduce(
        0, place, features.flatten(0, 1), "mean", include_self=False
    )
    static, dynamic = (
        torch.bincount(found.scene[left[which]], minlength=len(found.scenes[0]))
        for which in (found.static[left], ~found.static[left])
    )
    assert chosen.kept[0].tolist() == left.tolist()
    return {
        "tokens": means[order],
        "static_sizes": static,
        "dynamic_sizes": dynamic,
        "window_sizes": torch.tensor(found.scenes[0]),
    }


def _second(attention: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    """Static tokens of a scene, then its frames, which have as many dynamic tokens each."""
    sizes: list[int] = []
    parts = zip(params["static_sizes"], params["dynamic_sizes"], params["window_sizes"], strict=True)
    for static, dynamic, frames in parts:
        sizes += [static, *[dynamic // frames] * frames]
    n = attention.shape[2]
    strategy = PruneVid(alpha=params["alpha"])
    state = strategy.begin(PromptInfo((n,), model_shape()))
    state.number = torch.repeat_interleave(torch.arange(len(sizes)) + 1, torch.tensor(sizes)).unsqueeze(0)
    rows = attention.unsqueeze(0), torch.ones(1, attention.shape[1], dtype=torch.bool)
    site = replace(layer_site((n,), {Need.TEXT_ROWS: rows}, boundary=11), state=state)
    chosen = strategy.select(site, counts_tensor(n))
    return {"kept": chosen.kept[0], "count": torch.tensor(chosen.counts[0])}
