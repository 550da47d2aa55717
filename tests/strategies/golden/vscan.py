"""VScan: the first stage on sites of its own; the later one on PyramidDrop's route, and without RoPE on Qwen-VL's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models import IMAGE
from tests.qwen import tiny_qwen
from tests.strategies.golden.pyramiddrop import route
from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid
from tokentrim.contracts.sites import Need
from tokentrim.engine.tokens.stream import merge_features
from tokentrim.session import trim
from tokentrim_strategies.vscan import VScan


class _Late(VScan):
    """The later cuts alone, of pictures that nobody has encoded."""

    def needed(self) -> frozenset[Need]:
        return self.needed_at(1)


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "hidden" not in inputs:
        return _first(inputs, params)
    cuts: dict[str, Any] = {"keep_ratio": 1.0, "boundaries": tuple(params["layers"])}
    if "counts" in params:
        return route(inputs, params, _Late(late_counts=tuple(params["counts"]), positions="renumber", **cuts))
    return _qwen(inputs, params, _Late(late_ratio=params["ratios"][0], row="plain", **cuts))


def _qwen(inputs: dict[str, Tensor], params: dict[str, Any], strategy: VScan) -> dict[str, Tensor]:
    """One cut on the way through layers that change nothing; positions are told by how far they turn."""
    hidden, (cut,), width = inputs["hidden"], params["layers"], params["head_dim"]
    heads = {"num_attention_heads": params["heads"], "num_key_value_heads": params["kv_heads"]}
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, width // 2 - 2]}
    model = tiny_qwen(
        layers=cut + 1, hidden_size=hidden.shape[-1], rms_norm_eps=params["eps"], rope_parameters=sections, **heads
    )
    language, turns = model.model.language_model, list[tuple[Tensor, Tensor]]()
    for layer in language.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    last = language.layers[cut]
    last.input_layernorm.weight.copy_(inputs["norm"][0])
    for name in "qk":
        projection = getattr(last.self_attn, f"{name}_proj")
        projection.weight.copy_(inputs[f"w{name}"][0])
        projection.bias.zero_()
    language.register_forward_pre_hook(lambda _m, args, kw: (args, {**kw, "inputs_embeds": hidden}), with_kwargs=True)
    last.register_forward_pre_hook(lambda _m, _a, kw: turns.append(kw["position_embeddings"]), with_kwargs=True)
    ids = torch.ones(hidden.shape[:2], dtype=torch.long)
    ids[:, params["image_start"][0] :][:, : params["image_tokens"][0]] = IMAGE
    with trim(model, strategy) as session, torch.no_grad():
        model(input_ids=ids, position_ids=inputs["positions"].long().unsqueeze(1))
    cos, sin = (table[0, :, :3].T.unsqueeze(2) for table in turns[0])  # one pair of channels turns by each axis
    angles = torch.arange(64.0) * 1e4 ** (-2 * torch.arange(3.0) / width)[:, None, None]
    distance = (cos - angles.cos()).abs() + (sin - angles.sin()).abs()
    return {"kept_0": session.trace.kept(cut, 0), "positions_0": distance.argmin(dim=2)}


def _first(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features, qwen = inputs["features"], "grid" in params
    features = features.unsqueeze(0) if qwen else features
    images, n, width = features.shape
    if qwen:
        looks = torch.stack([_received(inputs[f"{name}_attention"], inputs) for name in ("local", "global")])[:, None]
        kept, (rows, cols) = int(params["ratio"] * n), params["grid"]
    else:
        looks = torch.stack([inputs["cls_attn_5"], inputs["cls_attn_22"]]).transpose(1, 2).flatten(2)
        kept, (rows, cols) = images * params["budget"], (24, 24)
    site = layer_site(
        (images * n,),
        {
            Need.VISION_ROWS: looks[None],
            Need.HIDDEN: features.view(1, -1, width),
            Need.GRID: raster_grid(rows, cols, images),
        },
    )
    strategy = VScan(keep_count=kept, total="released", windows="capped" if qwen else "even")
    selection = strategy.select(site, counts_tensor(kept))
    selection.check((images * n,), static=None, limit=(kept,))
    selection.check_indices((images * n,))
    assert selection.target is not None
    found = (selection.kept % n).view(images, -1)
    tokens = merge_features(site.hidden, selection).view(images, -1, width)
    if qwen:
        return {"kept": found[0], "tokens": tokens[0]}
    gone = ~torch.isin(torch.arange(images * n), selection.kept[0])
    slots = selection.target[0, gone].view(images, -1) - found.shape[1] * torch.arange(images).unsqueeze(1)
    return {"kept": found, "tokens": tokens, "merged_into": slots}


def _received(maps: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """[N]: attention that each visual token receives, from maps of patches in the order of windows, or given."""
    if maps.dim() == 1:
        return maps
    return maps.sum(dim=0).mean(dim=0).view(-1, 4).mean(dim=1)[inputs["reverse"].long()]
