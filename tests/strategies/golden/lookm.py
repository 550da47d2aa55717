"""``lookm``: the choice of each head and what is merged into it; heads stand for rows of a batch."""

from typing import Any

import torch
from torch import Tensor

from tests.strategies.sites_factory import step_site
from tokentrim import Need, top_selection
from tokentrim_strategies.lookm import LookM

_MERGES = {
    "pivot": "pivot", "weighted": "weighted", "average": "average-released", "drop": "none", "h2o": "none",
}  # fmt: skip


def outputs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """Text and the last entries stay there; what a strategy decides about is the rest, the images' alone but in H2O."""
    keys, values, sums = (inputs[name] for name in ("keys", "values", "column_sums"))
    heads, length = sums.shape
    heavy, recent = (int(params[name] * length) for name in ("heavy", "recent"))
    free = torch.zeros(length, dtype=torch.bool)
    for number, place in enumerate(params["image_positions"]):
        start = place + (params["image_tokens"] - 1) * number
        free[start : start + params["image_tokens"]] = True
    free |= params["variant"] == "h2o"
    free[length - recent :] = False
    wanted = max(0, heavy - (length - recent - int(free.sum())))
    strategy = LookM(keep_count=wanted, merge=_MERGES[params["variant"]])

    n = int(free.sum())
    site = step_site((n,) * heads, {Need.PROMPT_COLUMNS: sums[:, free].unsqueeze(1)})
    count = strategy.count(1, 0, n, site.shape)
    chosen = top_selection(strategy.score(site), (count,) * heads, (n,) * heads).kept
    stays = (~free).repeat(heads, 1)
    stays.scatter_(1, free.nonzero()[:, 0][chosen], True)
    kept = stays.nonzero()[:, 1].view(heads, -1)
    whole = strategy.merged_by_head(
        keys.unsqueeze(0), values.unsqueeze(0), kept.unsqueeze(0), torch.ones(1, length, dtype=torch.bool)
    )
    return {"kept": kept, "count": torch.tensor(kept.shape[1]), "keys": whole[0][0], "values": whole[1][0]}
