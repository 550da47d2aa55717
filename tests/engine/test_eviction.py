"""Eviction by offset and by swaps against list surgery, and what a cache layer holds afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.engine.cases import deviation, generate, trimmed
from tests.models import prompt, tiny_llava
from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.forecast import plan
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.eviction import evict, evict_first, fronted
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import UnsupportedError
from tokentrim.plugins.loader import registry
from tokentrim.session import trim

_quick = settings(deadline=None, max_examples=100)


@st.composite
def caches(draw: st.DrawFn) -> tuple[Stream, list[list[int | None]]]:
    """A stream with its slow twin: per row, the raster number of every real token, None for text."""
    rows = draw(st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=4))
    left = draw(st.booleans())
    width = max(map(len, rows)) + 1
    pads = [width - len(row) - 1 for row in rows]
    visual, mask = torch.zeros(len(rows), width, dtype=torch.bool), torch.ones(len(rows), width)
    for index, (row, pad) in enumerate(zip(rows, pads, strict=True)):
        first = pad if left else 0
        visual[index, first + 1 : first + 1 + len(row)] = torch.tensor(row, dtype=torch.bool)
        mask[index, :first] = 0
        mask[index, first + 1 + len(row) :] = 0
    twin: list[list[int | None]] = []
    for row in rows:
        numbers = iter(range(len(row)))
        twin.append([None, *(next(numbers) if is_visual else None for is_visual in row)])
    return Stream.of_prompt(visual, mask if any(pads) else None), twin


def contents(stream: Stream, buffer: Tensor, visual: Tensor) -> list[tuple[list[int], list[int]]]:
    """Per row: (raster numbers by way of ``vis_pos``, prompt columns of the text), read off a cache's buffer."""
    found: list[tuple[list[int], list[int]]] = []
    for row in range(stream.rows):
        real = stream.vis_ids[row] >= 0
        columns = buffer[row, stream.vis_pos[row][real]].long()
        numbers = visual[row].long().cumsum(0) - 1
        assert numbers[columns].tolist() == stream.vis_ids[row][real].tolist()
        valid = torch.ones(stream.length, dtype=torch.bool) if stream.valid is None else stream.valid[row]
        held = buffer[row][valid].long()
        assert held.tolist() == stream.columns[row][valid].tolist()
        assert not stream.flush or valid.tolist() == sorted(valid.tolist())
        found.append((sorted(stream.vis_ids[row][real].tolist()), sorted(held[~visual[row][held]].tolist())))
    return found


def layer_of(stream: Stream) -> TrimLayer:
    """A cache layer whose keys are the numbers of the prompt's columns, behind it one generated token."""
    prompt_of = Prompt(stream.length, stream, (), None, torch.zeros(stream.rows), lambda: True, 1)
    layer = TrimLayer(prompt_of, 0)
    keys = torch.arange(float(stream.length)).reshape(1, 1, -1, 1).expand(stream.rows, 2, -1, 3)
    layer.update(keys, keys + 0.5)
    layer.stream = stream
    new = torch.full((stream.rows, 2, 1, 3), -1.0)
    layer.update(new, new)
    return layer


def held_columns(layer: TrimLayer) -> Tensor:
    """[B, T]: what stands in the prompt's columns; keys and values must agree, and the generated token be there."""
    assert torch.equal(layer.keys[:, :, :-1] + 0.5, layer.values[:, :, :-1])
    assert bool((layer.keys[:, :, -1] == -1).all())
    assert layer.keys.shape[2] == layer.stream.length + 1
    assert bool((layer.keys == layer.keys[:, :1, :, :1]).all())
    return layer.keys[:, 0, :-1, 0]


@_quick
@given(caches(), st.data())
def test_evicting_in_any_order_is_list_surgery(case: tuple[Any, ...], data: st.DataObject) -> None:
    stream, twin = case
    visual, layer = stream.visual_mask(), layer_of(stream)
    texts = [text for _, text in contents(stream, stream.columns.float(), visual)]
    numbers = [[number for number in row if number is not None] for row in twin]
    if not stream.flush:
        layer.rearrange(*fronted(stream))
    for _ in range(3):
        keep = [[number for number in row if data.draw(st.booleans())] for row in numbers]
        counts = tuple(map(len, keep))
        mask = torch.zeros(stream.rows, max(map(len, numbers)), dtype=torch.bool)
        for index, row in enumerate(keep):
            mask[index, [numbers[index].index(number) for number in row]] = True
        selection, weights = Selection.from_mask(mask, counts), layer.keys[:, :, None, :, 0]
        layer.evict(*(moved := evict(layer.stream, selection)))
        assert torch.equal(moved[1].of_weights(weights), layer.keys[:, :, None, :, 0])
        numbers = keep
        assert layer.stream.n_visual == counts
        assert layer.stream.real == tuple(map(sum, zip(counts, map(len, texts), strict=True)))
        assert contents(layer.stream, held_columns(layer), visual) == list(zip(numbers, texts, strict=True))


@_quick
@given(caches(), st.data())
def test_evicting_in_a_known_order_keeps_the_highest(case: tuple[Any, ...], data: st.DataObject) -> None:
    stream, twin = case
    visual, layer = stream.visual_mask(), layer_of(stream)
    texts = [text for _, text in contents(stream, stream.columns.float(), visual)]
    width = stream.vis_ids.shape[1]
    scores = torch.tensor([[data.draw(st.integers(-2, 2)) for _ in range(width)] for _ in twin], dtype=torch.float32)
    scores = scores.reshape(len(twin), width).masked_fill(~stream.vis_valid, float("-inf"))
    layer.rearrange(*fronted(stream, torch.argsort(scores, dim=1, descending=True, stable=True).flip(1)))
    counts = stream.n_visual
    for _ in range(3):
        counts = tuple(data.draw(st.integers(0, n)) for n in counts)
        after, moves = evict_first(layer.stream, counts)
        assert moves.source is None
        layer.evict(after, moves)
        kept = top_selection(scores, counts, stream.n_visual).kept
        expected = [(row[row >= 0].tolist(), text) for row, text in zip(kept, texts, strict=True)]
        assert contents(layer.stream, held_columns(layer), visual) == expected


def test_memory_of_evicted_entries_is_given_back() -> None:
    n = 4096
    visual = torch.ones(1, n + 1, dtype=torch.bool)
    visual[:, 0] = False
    layer = layer_of(Stream.of_prompt(visual, None))
    layer.rearrange(*fronted(layer.stream, torch.arange(n).unsqueeze(0)))
    whole = layer.resident_bytes
    for count in range(n - 64, -1, -64):
        layer.evict(*evict_first(layer.stream, (count,)))
        assert layer.stored_bytes == (count + 2) * 2 * 2 * 3 * 4
        assert layer.resident_bytes <= 2 * layer.stored_bytes + 33 * 2 * 2 * 3 * 4
    assert layer.resident_bytes < whole / 50


def test_buffers_are_written_in_place_only_where_nobody_minds() -> None:
    """Compiled steps, which write past the layer's own update, ask for it."""
    with torch.inference_mode():
        layer = layer_of(Stream.of_prompt(torch.ones(1, 4, dtype=torch.bool), None))
        layer.resize(64)
        assert layer.writable
    assert not layer.writable  # the inference mode is over
    new = torch.full((1, 2, 1, 3), -1.0)
    for mode, may in ((torch.no_grad, True), (torch.enable_grad, False), (torch.no_grad, True)):
        with mode():
            layer.update(new, new)
        assert layer.writable == may  # a gradient may need what it has seen
    held = layer.buffers
    with torch.no_grad():
        layer.update(new, new)
    assert layer.buffers is held


def _frozen() -> list[Any]:
    """Every registered temporal scorer with a configuration that ranks once."""
    found: list[Any] = []
    for name in registry("strategy").names():
        part: Any = registry("strategy").get(name)
        if "ranking" in part.model_fields:
            found.append({"name": name, "ranking": "frozen", "horizon": 7})
    return found


@pytest.mark.parametrize("spec", _frozen(), ids=lambda spec: spec["name"])
def test_ranking_once_is_ranking_by_the_same_scores_at_every_step(spec: Any, monkeypatch: Any) -> None:
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    with trimmed(model, spec, inputs) as session:
        ids, logits = generate(model, inputs, 9)
        once = session.trace
        part = session.strategy.temporal_part
    assert part.ranks_once()
    monkeypatch.setattr(type(part), "ranks_once", lambda self: False)
    with trimmed(model, spec, inputs) as session:
        asked_ids, asked_logits = generate(model, inputs, 9)
        assert session.trace.rows_equal(once)
    assert torch.equal(ids, asked_ids)
    assert deviation(logits, asked_logits) < 1e-5


def test_who_ranks_once_cannot_read_each_step() -> None:
    from tests.engine.probes import StepProbe

    class Confused(StepProbe):
        def ranks_once(self) -> bool:
            return True

    assert Need.LAST_ROW in Confused().needed()
    with pytest.raises(UnsupportedError, match="not need what each step brings"), trim(tiny_llava(), Confused()):
        pass


@pytest.mark.parametrize("spec", ["fastv", {"name": "fastv", "k": 1, "keep_ratio": 0.25}, "pvtp"])
@pytest.mark.parametrize("new_tokens", [2, 9, 40, 90])
def test_what_is_resident_at_the_limit_is_what_the_formula_says(spec: Any, new_tokens: int) -> None:
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5])
    with trim(model, spec) as session:
        out = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
        )
    layers = out.past_key_values.layers
    planned = plan(session.strategy, session.layout.shape, 16, inputs["input_ids"].shape[1] - 16, new_tokens).usage
    assert [layer.resident_bytes for layer in layers] == [layer.stored_bytes for layer in layers]
    assert sum(layer.resident_bytes for layer in layers) == planned.kv_bytes(new_tokens - 1)
