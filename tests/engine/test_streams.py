"""Selections, streams, budgets and schedules against slow restatements, over random cases."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.counting.rounding import keep_count, prune_count, resolve_count
from tokentrim.counting.schedule import Schedule
from tokentrim.engine.tokens.stream import Stream, gather_columns, merge_features
from tokentrim.errors import StrategyError

_quick = settings(deadline=None, max_examples=80)


@st.composite
def scored(draw: st.DrawFn) -> tuple[torch.Tensor, list[int], list[int]]:
    """Scores with ties, real tokens per row, and counts to keep."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    n = [draw(st.integers(0, width)) for _ in range(rows)]
    counts = [draw(st.integers(0, k)) for k in n]
    values = [[draw(st.integers(-2, 2)) for _ in range(width)] for _ in range(rows)]
    return torch.tensor(values, dtype=torch.float32), n, counts


@_quick
@given(scored())
def test_top_selection_keeps_the_highest_and_of_equals_the_first(case: tuple[Any, ...]) -> None:
    scores, n, counts = case
    found = top_selection(scores, tuple(counts), tuple(n))
    found.check(tuple(n), static=tuple(counts))
    found.check_indices(tuple(n))
    for row, (size, count) in enumerate(zip(n, counts, strict=True)):
        best = sorted(range(size), key=lambda i: (-float(scores[row, i]), i))[:count]
        assert found.kept[row, :count].tolist() == sorted(best)
        assert bool((found.kept[row, count:] == -1).all())


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_of_equal_counts_are_selected_as_by_sorting(
    data: st.DataObject, rows: int, width: int, dtype: torch.dtype
) -> None:
    numbers = st.sampled_from([float("-inf"), -1.0, -0.0, 0.0, 0.5, 2.0, float("inf")])
    values = data.draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=rows, max_size=rows))
    count = data.draw(st.integers(0, width))
    found = top_selection(torch.tensor(values, dtype=dtype), (count,) * rows, (width,) * rows)
    found.check_indices((width,) * rows)
    for row, scores in enumerate(values):
        best = sorted(range(width), key=lambda i: (-scores[i], i))[:count]
        assert found.kept[row].tolist() == sorted(best)


@_quick
@given(scored(), st.randoms(use_true_random=False))
def test_a_mask_lists_its_places(case: tuple[Any, ...], random: object) -> None:
    scores, _, _ = case
    mask = scores > 0
    counts = tuple(int(c) for c in mask.sum(1))
    found = Selection.from_mask(mask, counts)
    for row, count in enumerate(counts):
        assert found.kept[row, :count].tolist() == torch.nonzero(mask[row])[:, 0].tolist()
        assert bool((found.kept[row, count:] == -1).all())


@pytest.mark.parametrize(
    ("kept", "counts", "message"),
    [
        (torch.zeros(1, 2), (2,), "int64"),
        (torch.zeros(2, 2, dtype=torch.long), (2,), "of shape"),
        (torch.zeros(1, 1, dtype=torch.long), (2,), "counts"),
        (torch.zeros(1, 9, dtype=torch.long), (9,), "between 0"),
        (torch.zeros(1, 2, dtype=torch.long), (2,), "equal the schedule"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(kept: torch.Tensor, counts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        Selection(kept, counts).check((4,), static=(1,))


@pytest.mark.parametrize("behind", [(), (1, 1), (2,), (-1,)])
def test_more_behind_than_there_are_is_refused(behind: tuple[int, ...]) -> None:
    with pytest.raises(StrategyError, match="Selection.behind must give one number per row"):
        Selection(torch.tensor([[0]]), (1,), behind=behind).check((4,), static=(1,))
    with pytest.raises(StrategyError, match="ascending, unique"):
        Selection(torch.tensor([[1, 0, 1]]), (3,), behind=(2,)).check_indices((4,))


@pytest.mark.parametrize("kept", [[1, 0], [1, 1], [0, 4], [-1, 0]])
def test_indices_that_cannot_be_are_refused(kept: list[int]) -> None:
    with pytest.raises(StrategyError, match="ascending, unique"):
        Selection(torch.tensor([kept]), (2,)).check_indices((4,))


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[list[str]], bool]:
    """Rows of text (t) and visual (v) tokens, to be padded on the left or on the right."""
    rows = draw(st.lists(st.lists(st.sampled_from("tv"), min_size=1, max_size=8), min_size=1, max_size=4))
    return [[*row, "t"] for row in rows], draw(st.booleans())


def _stream(rows: list[list[str]], left: bool) -> tuple[Stream, list[list[str]]]:
    width = max(map(len, rows))
    padded = [["-"] * (width - len(r)) + r if left else r + ["-"] * (width - len(r)) for r in rows]
    visual = torch.tensor([[kind == "v" for kind in row] for row in padded])
    mask = torch.tensor([[kind != "-" for kind in row] for row in padded])
    return Stream.of_prompt(visual, None if bool(mask.all()) else mask.long()), padded


@_quick
@given(prompts(), st.data())
def test_taking_tokens_out_twice_is_list_surgery(case: tuple[Any, ...], data: st.DataObject) -> None:
    rows, left = case
    stream, padded = _stream(rows, left)
    # The slow twin: per row, (column, raster number or None) of every real token in order.
    twin = []
    for row in padded:
        visual = iter(range(len(row)))
        twin.append([(c, next(visual) if kind == "v" else None) for c, kind in enumerate(row) if kind != "-"])
    total_order = torch.arange(stream.length).expand(stream.rows, -1)
    lost = [0] * len(rows)
    for _ in range(2):
        keep = [[data.draw(st.booleans()) for _, number in row if number is not None] for row in twin]
        counts = tuple(sum(row) for row in keep)
        mask = torch.zeros(len(rows), max(map(len, keep)), dtype=torch.bool)
        for index, row in enumerate(keep):
            mask[index, : len(row)] = torch.tensor(row, dtype=torch.bool)
        selection = Selection.from_mask(mask, counts)
        moved: list[list[int]] = [[] for _ in rows]
        if data.draw(st.booleans()):
            for index, n in enumerate(counts):
                shuffled = data.draw(st.permutations(selection.kept[index, :n].tolist()))
                moved[index] = shuffled[: data.draw(st.integers(0, n))]
                fixed = sorted(set(shuffled) - set(moved[index]))
                selection.kept[index, :n] = torch.tensor([*fixed, *moved[index]])
            selection = replace(selection, behind=tuple(map(len, moved)))
        selection.check(stream.n_visual, static=None)
        selection.check_indices(stream.n_visual)
        stream, order = stream.take(selection)
        total_order = gather_columns(total_order, order)
        for index, row in enumerate(twin):
            visual = [token for token in row if token[1] is not None]
            behind = [visual[number] for number in moved[index]]
            staying = {token for token, kept in zip(visual, keep[index], strict=True) if kept} - {*behind}
            twin[index] = []
            for token in row:
                twin[index] += [token] if token[1] is None or token in staying else []
                twin[index] += behind if visual and token == visual[-1] else []
            lost[index] += len(row) - len(twin[index])
    assert stream.length == max(map(len, twin))
    assert stream.dropped.tolist() == lost
    for index, row in enumerate(twin):
        pads = stream.length - len(row)
        assert stream.real[index] == len(row)
        assert stream.columns[index, pads:].tolist() == [column for column, _ in row]
        assert total_order[index, pads:].tolist() == stream.columns[index, pads:].tolist()
        numbers = [number for _, number in row if number is not None]
        assert stream.n_visual[index] == len(numbers)
        assert stream.vis_ids[index].tolist() == numbers + [-1] * (stream.vis_ids.shape[1] - len(numbers))
        places = [pads + i for i, (_, number) in enumerate(row) if number is not None]
        assert stream.vis_pos[index, : len(places)].tolist() == places
        valid = stream.valid[index] if stream.valid is not None else torch.ones(stream.length, dtype=torch.bool)
        assert valid.tolist() == [False] * pads + [True] * len(row)
        columns, real = stream.text()
        assert columns[index][real[index]].tolist() == [pads + i for i, (_, v) in enumerate(row) if v is None]
        last = stream.last_columns()
        assert (stream.length - 1 if last is None else int(last[index])) == stream.length - 1


@_quick
@given(prompts(), st.data())
def test_selecting_rows_is_list_indexing(case: tuple[Any, ...], data: st.DataObject) -> None:
    stream, _ = _stream(*case)
    index = data.draw(st.lists(st.integers(0, stream.rows - 1), min_size=1, max_size=5))
    found = stream.select_rows(torch.tensor(index))
    assert found.n_visual == tuple(stream.n_visual[i] for i in index)
    assert found.real == tuple(stream.real[i] for i in index)
    assert torch.equal(found.vis_pos, stream.vis_pos[index])
    assert torch.equal(found.columns, stream.columns[index])
    assert (found.valid is None) == (stream.valid is None)


@_quick
@given(st.integers(1, 3), st.integers(1, 8), st.data())
def test_merging_is_a_weighted_mean(rows: int, n: int, data: st.DataObject) -> None:
    features = torch.randn(rows, n, 5, generator=torch.Generator().manual_seed(n))
    slots = data.draw(st.integers(1, n))
    target = torch.tensor([[data.draw(st.integers(-1, slots - 1)) for _ in range(n)] for _ in range(rows)])
    target[:, :slots] = torch.arange(slots)
    weight = torch.tensor([[data.draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(n)] for _ in range(rows)])
    kept = torch.arange(slots).expand(rows, -1)
    found = merge_features(features, Selection(kept, (slots,) * rows, target, weight))
    for row in range(rows):
        for slot in range(slots):
            members = [i for i in range(n) if int(target[row, i]) == slot]
            total = sum(float(weight[row, i]) for i in members)
            expected = sum(float(weight[row, i]) * features[row, i] for i in members) / total
            torch.testing.assert_close(found[row, slot], expected, atol=1e-5, rtol=1e-5)
    plain = merge_features(features, Selection(kept, (slots,) * rows))
    assert torch.equal(plain, features[:, :slots])


@_quick
@given(st.decimals(0, 1, places=4), st.integers(0, 5000))
def test_a_ratio_becomes_a_count_in_exact_decimals(ratio: Decimal, n: int) -> None:
    expected = int(Fraction(ratio) * n)
    assert keep_count(float(ratio), n) == expected
    assert prune_count(float(ratio), n) == int((1 - Fraction(ratio)) * n)
    assert resolve_count(n, float(ratio), None) == expected
    assert resolve_count(n, None, n + 3) == n


@_quick
@given(st.dictionaries(st.integers(0, 9), st.integers(0, 60), max_size=5), st.integers(0, 60))
def test_a_schedule_tells_each_layer_its_count(steps: dict[int, int], n: int) -> None:
    ordered = sorted(steps.items())
    counts = [count for _, count in ordered]
    if counts != sorted(counts, reverse=True):
        with pytest.raises(StrategyError, match="never rise"):
            Schedule.of(steps)
        return
    expected = [min([n, *(count for boundary, count in ordered if boundary <= layer)]) for layer in range(10)]
    assert list(Schedule.of(steps).per_layer(10, n)) == expected
