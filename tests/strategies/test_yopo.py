"""YOPO: against an untouched decoder whose attention is edited by obvious loops."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.engine.cases import deviation, generate
from tests.engine.reference import embeddings
from tests.models import IMAGE, alone, prompt, tiny_llava
from tokentrim.bench.limits import least_prefill_flops
from tokentrim.counting.costs import prefill_flops
from tokentrim.counting.forecast import plan
from tokentrim.engine.abilities.bands import spans_of
from tokentrim.errors import TokentrimError, UnsupportedError
from tokentrim.session import trim
from tokentrim_strategies.yopo import YOPO

SIDE, N, LAYERS, HEADS = 4, 16, 6, 4
_model = lru_cache(maxsize=8)(tiny_llava)
ROWS: tuple[list[int | str], ...] = ([3, "image", 5], [9], [2, "image", 4, "image", 7], ["image", "image", 2])
OFF = {0: (1,), 2: (0, 2, 3), 4: (0, 1, 2, 3)}


def _slow_logits(
    model: Any,
    inputs: dict[str, Tensor],
    generated: Tensor,
    window: int | None,
    cut: int,
    off: dict[int, tuple[int, ...]],
    masked: bool = False,
) -> Tensor:
    """[T + G, V]: every weight of every head by the rules of the method, one query and one key at a time."""
    ids = torch.cat([inputs["input_ids"][0], torch.full_like(generated, 2)])
    hidden = torch.cat([embeddings(model, inputs), model.get_input_embeddings()(generated)])
    is_visual = (ids == IMAGE).tolist()
    raster = (torch.cumsum(torch.tensor(is_visual).long(), 0) - 1).tolist()
    total = len(ids)
    decoder = model.model.language_model
    cos, sin = (table[0] for table in decoder.rotary_emb(hidden.unsqueeze(0), torch.arange(total).unsqueeze(0)))

    def turned(vectors: Tensor) -> Tensor:
        first, second = vectors.chunk(2, dim=-1)
        return vectors * cos + torch.cat([-second, first], dim=-1) * sin

    def sees(layer: int, query: int, key: int) -> bool:
        if is_visual[key] and layer >= cut and not masked:
            return query == key
        if is_visual[query] and is_visual[key] and window is not None:
            (image, place), (other, there) = divmod(raster[query], N), divmod(raster[key], N)
            down, across = abs(place // SIDE - there // SIDE), abs(place % SIDE - there % SIDE)
            return image == other and max(down, across) <= (window - 1) // 2
        return key <= query

    for number, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            projection(normed).view(total, -1, attention.head_dim).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = turned(query), turned(key)
        seen = torch.tensor([[sees(number, i, j) for j in range(total)] for i in range(total)])
        mixed: list[Tensor] = []
        for head in range(HEADS):
            source = head * key.shape[0] // HEADS
            scores = query[head] @ key[source].T * attention.head_dim**-0.5
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
            silent = head in off.get(number, ()) and (masked or number < cut)
            if silent or (masked and number >= cut):
                weights = weights * ~torch.tensor(is_visual)
            out = weights @ value[source]
            if silent:
                out = out * ~torch.tensor(is_visual).unsqueeze(1)
            mixed.append(out)
        hidden = hidden + attention.o_proj(torch.cat(mixed, dim=-1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(decoder.norm(hidden))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(
    ("window", "depth", "off"),
    [(3, 1.0, {}), (5, 0.5, {}), (None, 1.0, OFF), (3, 0.67, OFF), (1, 1.0, OFF), (None, 0.5, {})],
)
def test_golden(
    window: int | None, depth: float, off: dict[int, tuple[int, ...]], kv_heads: int, attention: str
) -> None:
    model = _model(side=SIDE, kv_heads=kv_heads, attention=attention)
    inputs = prompt(model, [2, "image", 3, "image", 4])
    with trim(model, {"name": "yopo", "window": window, "depth": depth, "inactive": off}):
        ids, logits = generate(model, inputs, 6)
    expected = _slow_logits(model, inputs, ids[0, :-1], window, int(depth * LAYERS + 1e-9), off)
    assert deviation(logits[0], expected[inputs["input_ids"].shape[1] - 1 :]) < 1e-5


@pytest.mark.parametrize(
    ("window", "depth", "off", "attention"),
    [(5, 0.5, {}, "sdpa"), (None, 0.5, {}, "eager"), (3, 0.34, OFF, "sdpa"), (None, 0.0, OFF, "sdpa")],
)
def test_masked_lazy_layers_keep_every_token(
    window: int | None, depth: float, off: dict[int, tuple[int, ...]], attention: str
) -> None:
    model = _model(side=SIDE, kv_heads=2, attention=attention)
    inputs = prompt(model, [2, "image", 3, "image", 4])
    spec = {"name": "yopo", "window": window, "depth": depth, "lazy": "masked", "inactive": off}
    with trim(model, spec) as session:
        ids, logits = generate(model, inputs, 6)
        assert session.report().layer_mean_ratio == 1.0
    expected = _slow_logits(model, inputs, ids[0, :-1], window, int(depth * LAYERS + 1e-9), off, masked=True)
    assert deviation(logits[0], expected[inputs["input_ids"].shape[1] - 1 :]) < 1e-5
    dropped = _slow_logits(model, inputs, ids[0, :-1], window, int(depth * LAYERS + 1e-9), off)
    assert deviation(dropped, expected) > 1e-3
    with pytest.raises(TokentrimError, match="depend on its budget knob 'depth'"):
        YOPO(lazy="masked").at_budget(session.layout.shape, N, layer_mean_ratio=0.5)


@pytest.mark.parametrize(("attention", "lazy"), [("sdpa", "dropped"), ("eager", "dropped"), ("sdpa", "masked")])
def test_a_row_in_a_ragged_batch_is_the_row_alone(attention: str, lazy: str) -> None:
    model = _model("qwen2", "siglip", side=SIDE, attention=attention)
    inputs = prompt(model, *ROWS)
    spec = {"name": "yopo", "window": 3, "depth": 0.67, "lazy": lazy, "inactive": OFF}
    with trim(model, spec) as session:
        ids, logits = generate(model, inputs, 8)
        assert session.trace.edits
        for row in range(len(ROWS)):
            own_ids, own_logits = generate(model, alone(inputs, row, N), 8)
            assert ids[row].tolist() == own_ids[0].tolist()
            assert deviation(logits[row], own_logits[0]) < 1e-4


def test_with_everything_seen_nothing_changes() -> None:
    model = _model(side=SIDE)
    inputs = prompt(model, *ROWS)
    ids, logits = generate(model, inputs, 5)
    with trim(model, {"name": "yopo", "window": None, "depth": 1.0}) as session:
        own_ids, own_logits = generate(model, inputs, 5)
        assert session.report().layer_mean_ratio == 1.0
        assert not session.trace.edits
    assert torch.equal(ids, own_ids)
    assert torch.equal(logits, own_logits)


def test_without_edits_it_is_withdrawal() -> None:
    model = _model(side=SIDE)
    inputs = prompt(model, *ROWS)
    found: list[Tensor] = []
    for spec in ({"name": "yopo", "window": None, "depth": 0.5}, {"name": "text-only", "k": 3}):
        with trim(model, spec):
            found.append(generate(model, inputs, 5)[1])
    assert torch.equal(*found)


def test_bad_edits_are_refused() -> None:
    model = _model(side=SIDE)
    with pytest.raises(TokentrimError, match="be odd"):
        trim(model, {"name": "yopo", "window": 4})
    with pytest.raises(TokentrimError, match="acts alone"):
        trim(model, {"spatial": [{"name": "yopo"}], "temporal": {"name": "vta"}})
    flex = _model(side=SIDE, attention="flex_attention")
    with pytest.raises(UnsupportedError, match="sdpa"):
        trim(flex, {"name": "yopo"})


def _near(grid: list[tuple[int, int, int]], radius: int) -> list[list[bool]]:
    """Which tokens, given as (plane, row, column), are neighbours: one pair at a time."""
    return [[a[0] == b[0] and abs(a[1] - b[1]) <= radius and abs(a[2] - b[2]) <= radius for b in grid] for a in grid]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=0, max_size=3), min_size=1, max_size=3
    ),
    radius=st.integers(0, 3),
    least=st.sampled_from([1, 8, 96]),
)
def test_blocks_hold_every_neighbour(samples: list[list[tuple[int, int]]], radius: int, least: int) -> None:
    tokens = [
        [(plane, row, col) for plane, (rows, cols) in enumerate(planes) for row in range(rows) for col in range(cols)]
        for planes in samples
    ]
    n = max(len(sample) for sample in tokens)
    planes, rows = np.full((len(tokens), n), -1), np.full((len(tokens), n), -1)
    for number, sample in enumerate(tokens):
        for place, (plane, row, _) in enumerate(sample):
            planes[number, place], rows[number, place] = plane, row
    spans = spans_of(planes, rows, 5, radius, least=least)
    assert spans.pairs <= n * n
    for sample in tokens:
        for place, near in enumerate(_near(sample, radius)):
            first = spans.first[place // spans.block]
            assert 0 <= first <= n - spans.width
            assert all(first <= other < first + spans.width for other, is_near in enumerate(near) if is_near)


def test_only_what_blocks_leave_out_is_counted() -> None:
    """Of 24 x 24 tokens in blocks of 96 (4 grid rows), window 3: 6 rows of keys for each block, counted twice."""
    model = _model(side=24)
    inputs = prompt(model, [2, "image", 3])
    with trim(model, {"name": "yopo", "window": 3, "depth": 0.5}) as session:
        generate(model, inputs, 2)
        report, shape = session.report(), session.layout.shape
    n_text = inputs["input_ids"].shape[1] - 576
    assert report.layer_mean_ratio == 0.5
    full = prefill_flops((576 + n_text,) * LAYERS, shape)
    cut = prefill_flops((576 + n_text,) * 3 + (n_text,) * 3, shape)
    skipped = 3 * (576**2 - 2 * 576 * 6 * 24)
    assert report.flops_ratio == pytest.approx((cut - 4 * skipped * shape.attention_width) / full, abs=1e-12)
    usage = plan(YOPO(window=3, depth=0.5), shape, 576, n_text, 2).usage
    assert usage.flops_ratio == report.flops_ratio
    assert usage.flops_ratio_field == report.flops_ratio_field
    assert least_prefill_flops(usage) < usage.prefill_flops_whole
