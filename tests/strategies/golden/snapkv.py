"""``snapkv``: what each key/value head ranks by, and the entries that it would keep by itself."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import step_site
from tokentrim import Need, top_selection
from tokentrim.counting.shape import ModelShape
from tokentrim.engine import layer_reads
from tokentrim.engine.seams.attention import AttentionCall
from tokentrim.engine.tokens.stream import Stream
from tokentrim_strategies.snapkv import SnapKV


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """All entries in front of the window stand for visual ones. The window, which counts there, is text here."""
    window, given = params["window"], inputs.get("attention")
    rows = _read(inputs, params) if given is None else given[..., :-window].mean(dim=1)
    n = rows.shape[-1]
    # The share is that of the whole prompt there, rounded down.
    left = int((n + window) * (1 - params["ratio"])) - window
    strategy = SnapKV(keep_count=left, window=window, kernel=params["kernel"])
    heads = params["kv_heads"]
    shape = ModelShape(1, 16, params["heads"], heads, params["head_dim"], 32, 100)
    site = replace(step_site((n,), {Need.PROMPT_WINDOW: rows.unsqueeze(0)}), shape=shape)
    scores = strategy.per_head(site)[0]
    count = strategy.count(1, 0, n, shape)
    kept = top_selection(scores, (count,) * heads, (n,) * heads).kept
    rest = torch.arange(n, n + window).expand(heads, -1)
    found = {"scores": scores, "kept": torch.cat([kept, rest], dim=1), "count": torch.tensor(count + window)}
    return found if given is not None else {**found, "window_rows": rows}


def _read(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    """[H, N]: what the engine reads of a layer with these hidden states, projection and keys."""
    length, width = len(inputs["hidden"]), params["head_dim"]
    query = (inputs["hidden"] @ inputs["wq"].T).view(length, -1, width).transpose(0, 1)
    angles = torch.arange(length)[:, None] * params["rope_base"] ** -(torch.arange(0, width, 2) / width)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    turned = torch.cat([-query[..., width // 2 :], query[..., : width // 2]], dim=-1)
    query = query * cos + turned * sin
    key, value = inputs["keys"].unsqueeze(0), inputs["values"].unsqueeze(0)
    call = AttentionCall(lambda: None, torch.nn.Module(), query.unsqueeze(0), key, value, None, {})
    stream = Stream.of_prompt((torch.arange(length) < length - params["window"]).unsqueeze(0), None)
    return layer_reads.window_mean(call, stream, params["window"])[0]
