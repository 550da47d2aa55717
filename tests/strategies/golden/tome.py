"""``tome``: the rounds of merging that the vision tower runs, its weighted attention, and its schedules."""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tokentrim.contracts.toolkit.matching import merge_sized, most_pairs, soft_matching
from tokentrim.engine.abilities.merging import head_mean, weighed
from tokentrim.engine.seams.attention import AttentionCall
from tokentrim_strategies.tome import pairs_per_block


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """What the tower makes of a case."""
    if "layers" in inputs:
        blocks = int(inputs["layers"])
        return {
            f"r16_{rounds}": torch.tensor(pairs_per_block(16, blocks, rounds)) for rounds in ("constant", "decreasing")
        }
    if "q" in inputs:
        return _attention(**inputs)
    return _rounds(inputs["x"], inputs.get("metric"), params)


def _attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> dict[str, Tensor]:
    q, k, v, size = (part.unsqueeze(0) for part in (q, k, v, size))
    call = AttentionCall(sdpa_attention_forward, torch.nn.Module(), q, k, v, None, {})
    return {"out": weighed(call, size).run()[0].flatten(2)[0], "metric": head_mean(k)[0]}


def _rounds(x: Tensor, metric: Tensor | None, params: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    protected = params["class_token"] + params["distill_token"]
    size, group = torch.ones(x.shape[:2]), torch.arange(x.shape[1]).expand(x.shape[:2])
    for number, wanted in enumerate(params["rounds"]):
        tokens = x.shape[1]
        pairs = min(wanted, most_pairs(tokens, protected))
        places = soft_matching(x[..., : params["metric_dims"]] if metric is None else metric, pairs, protected)
        x, size = merge_sized(x, size, places, tokens - pairs)
        group = places.gather(1, group)
        found |= {f"{name}_{number}": rows for name, rows in _told(places).items() if rows.numel()}
    return {**found, "x": x, "size": size, "group": group}


def _told(places: Tensor) -> dict[str, Tensor]:
    """Who merged into whom, and the others of the even tokens in their new order."""
    source, target, order = [], [], []
    for row in places:
        odd = {int(place): 2 * i + 1 for i, place in enumerate(row[1::2])}
        even = [(int(place), 2 * i) for i, place in enumerate(row[::2])]
        source.append([token for place, token in even if place in odd])
        target.append([odd[place] for place, _ in even if place in odd])
        order.append([token for _, token in sorted(pair for pair in even if pair[0] not in odd)])
    return {"src": torch.tensor(source), "dst": torch.tensor(target), "unmerged_order": torch.tensor(order)}
