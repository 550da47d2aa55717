"""``dycoke`` as released: frames thinned at the input, and what each decode step reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape, step_site, video_grid
from tokentrim import Need, PromptInfo
from tokentrim_strategies.dycoke import DyCoke

LEFT_OUT = {"sequence": "kept tokens stay in raster order: only their set is the strategy's"}


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return _frames(inputs["features"], params) if "features" in inputs else _steps(inputs["rows"], params)


def _frames(features: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    frames, patches, _ = features.shape
    n = frames * patches
    (part,) = DyCoke(keep_ratio=1 - params["k"], version="code").spatial_parts
    site = layer_site(
        (n,), {Need.FEATURES: features.flatten(0, 1).unsqueeze(0), Need.GRID: video_grid(frames, 1, patches)}
    )
    kept = part.select(site, counts_tensor(n)).kept[0]
    return {"kept": kept, "counts": torch.bincount(kept // patches, minlength=frames)}


def _steps(rows: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    """The code counts one image token too few: what it chooses among are the ``image_tokens`` here."""
    start, n, length = params["image_start"], params["image_tokens"], params["sequence_length"]
    part = DyCoke(layer=3, read_ratio=1 - params["p"], version="code").temporal_part
    state = part.begin(PromptInfo((n,), model_shape()))
    found: dict[str, Tensor] = {}
    for step, row in enumerate(rows, start=1):
        site = step_site((n,), {Need.LAST_ROW: row[None, :, start : start + n]}, step=step, layer=3)
        object.__setattr__(site, "state", state)
        chosen = part.select(site, counts_tensor(part.count(step, 3, n, model_shape())))
        text = torch.cat([torch.arange(start), torch.arange(start + n, length + step)])
        found[f"read_{step - 1}"] = torch.cat([text, chosen.kept[0, : chosen.counts[0]] + start])
        found[f"full_read_{step - 1}"] = torch.tensor(int(chosen.counts[0] == n))
    return found
