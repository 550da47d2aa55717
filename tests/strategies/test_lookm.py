"""``lookm``: merging against a slow reference, and what a cache really holds afterwards."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.models import IMAGE, prompt, tiny_llava
from tests.strategies.sites_factory import step_site
from tokentrim import Need, StrategyError, UnsupportedError, trim
from tokentrim_strategies.lookm import LookM


def slow_merge(keys: Tensor, values: Tensor, kept: list[int], merge: str = "pivot") -> tuple[Tensor, Tensor]:
    """Of several heads [H, N, d] of one row, entry by entry."""
    leaving = [entry for entry in range(keys.shape[1]) if entry not in kept]
    cosines = [
        [torch.nn.functional.cosine_similarity(head[e], head[kept], dim=-1).max(dim=-1) for e in leaving]
        for head in keys
    ]
    weight = torch.tensor([[float(one.values) for one in row] for row in cosines]).view(len(keys), -1)
    goes = list(range(len(leaving)))
    if merge != "pivot":
        goes = [r for r in goes if weight[:, r].mean() >= weight.mean() - 1e-6]
    found = keys[:, kept].clone(), values[:, kept].clone()
    for head, row in enumerate(cosines):
        for new, one in zip(found, (keys[head], values[head]), strict=True):
            for k, entry in enumerate(kept):
                terms = [one[entry]]
                for place, r in enumerate(goes):
                    if int(row[r].indices) == k:
                        taken = one[leaving[place if merge == "average-released" else r]]
                        terms.append(
                            {"pivot": (taken + one[entry]) / 2, "weighted": weight[head, r] * taken}.get(merge, taken)
                        )
                new[head, k] = torch.stack(terms).mean(dim=0)
    return found


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.integers(0, 99),
    st.sampled_from(["pivot", "average", "weighted", "average-released"]),
)
def test_merging_is_the_slow_one_in_ragged_batches(counts: list[int], seed: int, merge: Any):
    noise = torch.Generator().manual_seed(seed)
    width, heads = max(counts), 2
    keys, values = (torch.randn(len(counts), heads, width, 4, generator=noise) for _ in range(2))
    valid = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    rows = [sorted(torch.randperm(n, generator=noise)[: (n + 1) // 2].tolist()) for n in counts]
    kept = torch.tensor([[*row, *[-1] * ((width + 1) // 2 - len(row))] for row in rows], dtype=torch.int64)
    found = LookM(merge=merge).merged(keys, values, kept.view(len(counts), -1), valid)
    dropped = LookM(merge="none").merged(keys, values, kept.view(len(counts), -1), valid)
    for row, (n, chosen) in enumerate(zip(counts, rows, strict=True)):
        if chosen:
            for got, one in zip(found, slow_merge(keys[row, :, :n], values[row, :, :n], chosen, merge), strict=True):
                torch.testing.assert_close(got[row, :, : len(chosen)], one)
            assert torch.equal(dropped[0][row, :, : len(chosen)], keys[row, :, chosen])


def test_scores_by_hand():
    columns = torch.tensor([[[0.1, 0.4], [0.5, 0.3]]])
    torch.testing.assert_close(
        LookM().score(step_site((2,), {Need.PROMPT_COLUMNS: columns})), torch.tensor([[0.3, 0.35]])
    )


@torch.no_grad()
def test_the_cache_holds_what_was_merged():
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 9], [2, "image", "image", 4])
    plain = model(**inputs, use_cache=True).past_key_values
    with trim(model, LookM()) as session:
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        model(input_ids=torch.tensor([[7], [8]]), attention_mask=mask, past_key_values=cache)
        for layer, held in enumerate(cache.layers):
            stream = held.held_stream
            for row in range(2):
                kept = session.trace.cached(layer, 1, row).tolist()
                places = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
                assert len(kept) == len(places) // 4
                there = {int(i): int(at) for i, at in zip(stream.vis_ids[row], stream.vis_pos[row], strict=True)}
                order = [there[entry] for entry in kept]
                before = plain.layers[layer]
                want = slow_merge(before.keys[row][:, places], before.values[row][:, places], kept)
                torch.testing.assert_close(held.keys[row][:, order], want[0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(held.values[row][:, order], want[1], rtol=1e-4, atol=1e-4)


class Everything(LookM):
    """Gives back more than what stays."""

    name: ClassVar[str] = "everything"

    def merged(self, keys: Tensor, values: Tensor, kept: Tensor, valid: Tensor) -> Any:
        return keys, values


class Again(LookM):
    """Would rank at each step."""

    name: ClassVar[str] = "again"

    def ranks_once(self) -> bool:
        return False


def test_wrong_merging_is_refused_by_name():
    model = tiny_llava(side=4)
    with pytest.raises(UnsupportedError, match="rank once, and evict"):
        trim(model, Again())
    with trim(model, Everything()), pytest.raises(StrategyError, match="everything.*merged keys and values"):
        model.generate(**prompt(model, [3, "image", 9]), max_new_tokens=3)
