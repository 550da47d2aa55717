"""PyramidDrop: the whole route through a model whose layers change nothing, so that ranking and positions show."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.models import IMAGE, tiny_llava
from tests.strategies.sites_factory import layer_site
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.session import trim
from tokentrim_strategies.pyramiddrop import PyramidDrop


class _Noted(PyramidDrop):
    """PyramidDrop, which keeps a note of its scores."""

    scores: ClassVar[list[Tensor]] = []

    def score(self, site: LayerSite) -> Tensor:
        self.scores.append(super().score(site))
        return self.scores[-1]


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return _row(inputs, params) if "row" in inputs else _stages(inputs, params)


def _row(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """The rule alone."""
    start, n, budget = params["image_start"], params["image_tokens"], params["budget"]
    row = inputs["row"][None, :, start : start + n]
    scores = PyramidDrop().score(layer_site((n,), {Need.NEXT_ROW: row}, boundary=8))
    return {"kept": top_selection(scores, (budget,), (n,)).kept[0]}


def _stages(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    _Noted.scores.clear()
    strategy = _Noted(boundaries=tuple(params["layers"]), shares=tuple(params["ratios"]), positions="renumber")
    found = route(inputs, params, strategy)
    for stage, scores in enumerate(_Noted.scores):
        for row, n in enumerate(params["image_tokens"]):
            sample = f"sample{row}_" if len(inputs["hidden"]) > 1 else ""
            left = len(found[f"{sample}kept_{stage - 1}"]) if stage else n
            found[f"{sample}score_{stage}"] = scores[row, :left]
    return found


def route(inputs: dict[str, Tensor], params: dict[str, Any], strategy: Strategy) -> dict[str, Tensor]:
    """Hidden states enter a model whose layers add nothing to them; those at the cuts have the given projections."""
    hidden, cuts = inputs["hidden"], params["layers"]
    model = _model(inputs, params)
    starts, numbers, lengths = params["image_start"], params["image_tokens"], params["prompt_len"]
    ids, mask = torch.ones(hidden.shape[:2], dtype=torch.long), torch.zeros(hidden.shape[:2], dtype=torch.long)
    for row, (start, n, length) in enumerate(zip(starts, numbers, lengths, strict=True)):
        ids[row, start : start + n] = IMAGE
        mask[row, : n + length] = 1
    language, places = model.model.language_model, dict[int, Tensor]()

    def given(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "inputs_embeds": hidden}

    def note(cut: int) -> Any:
        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            places[cut] = kwargs["position_ids"].expand(len(hidden), -1)

        return look

    language.register_forward_pre_hook(given, with_kwargs=True)
    for cut in cuts:
        language.layers[cut].register_forward_pre_hook(note(cut), with_kwargs=True)
    with trim(model, strategy) as session, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    found: dict[str, Tensor] = {}
    for row, (n, length) in enumerate(zip(numbers, lengths, strict=True)):
        sample = f"sample{row}_" if len(hidden) > 1 else ""
        left = n
        for stage, cut in enumerate(cuts):
            kept = session.trace.kept(cut, row)
            found[f"{sample}kept_{stage}"] = kept
            left = len(kept)
            found[f"{sample}positions_{stage}"] = places[cut][row, -(left + length) :]
    return found


def _model(inputs: dict[str, Tensor], params: dict[str, Any]) -> Any:
    width, heads = inputs["hidden"].shape[-1], params["heads"]
    model = tiny_llava(
        kv_heads=heads,
        layers=max(params["layers"]) + 1,
        hidden_size=width,
        num_attention_heads=heads,
        head_dim=params["head_dim"],
        rms_norm_eps=params["eps"],
        rope_theta=float(params["rope_base"]),
    )
    layers = model.model.language_model.layers
    for layer in layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for cut, norm, query, key in zip(params["layers"], inputs["norm"], inputs["wq"], inputs["wk"], strict=True):
        layers[cut].input_layernorm.weight.copy_(norm)
        layers[cut].self_attn.q_proj.weight.copy_(query)
        layers[cut].self_attn.k_proj.weight.copy_(key)
    return model
