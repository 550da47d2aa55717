"""``visionzip`` against the loops of its definition, and what it does with several pictures and with padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, raster_grid
from tokentrim import Groups
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim_strategies.visionzip import VisionZip

HEADS = 2


def select(
    rows: Tensor, keys: Tensor, hidden: Tensor, n: tuple[int, ...], counts: tuple[int, ...], grid: Grid, **more: object
) -> Selection:
    data = {Need.VISION_ROWS: rows, Need.VISION_KEYS: keys, Need.VISION_HIDDEN: hidden, Need.HIDDEN: 2 * hidden}
    site = layer_site(n, {**data, Need.GRID: grid}, projector=lambda vectors: 2 * vectors)
    selection = VisionZip.model_validate({"contextual": 0.4, **more}).select(site, counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def drawn(batch: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    keys, hidden = (torch.randn(batch, width, 6, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    return attention(batch, 1, HEADS, width, seed=seed), keys.unsqueeze(1), hidden


def slow(
    score: list[float], keys: Tensor, hidden: Tensor, total: int, contextual: int, mean: bool
) -> dict[int, Tensor]:
    """Token -> its vector, for one picture."""
    n = len(score)
    order = sorted(range(n), key=lambda j: -score[j])
    dominant = order[: total - contextual]
    rest = [j for j in range(n) if j not in dominant]
    targets = [rest[turn * (len(rest) // contextual)] for turn in range(contextual)]
    metric = keys.unflatten(-1, (HEADS, -1)).mean(-2)
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for j in rest:
        if j not in joined and targets:
            cosine = torch.nn.functional.cosine_similarity(metric[j], metric[targets], dim=-1)
            joined[targets[int(cosine.argmax())]].append(j)
    found = {j: hidden[j] for j in dominant}
    for target, others in joined.items():
        own = hidden[target]
        if others:
            own = hidden[[target, *others]].mean(0) if mean else own + hidden[others].mean(0)
        found[target] = own
    return {j: 2 * vector for j, vector in sorted(found.items())}


@given(n=st.integers(1, 30), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loops(n: int, seed: int, data: st.DataObject):
    total = data.draw(st.integers(0, n))
    contextual, mean = data.draw(st.integers(0, total)), data.draw(st.booleans())
    rows, keys, hidden = drawn(1, n, seed)
    more = {"contextual": None, "contextual_count": contextual, "reduce": "mean" if mean else "add"}
    selection = select(rows, keys, hidden, (n,), (total,), raster_grid(1, n), **more)
    expected = slow(rows[0, 0].sum(0).tolist(), keys[0, 0], hidden[0], total, contextual, mean)
    assert selection.kept[0].tolist() == list(expected)
    assert selection.features is not None
    if expected:
        torch.testing.assert_close(selection.features[0], torch.stack(list(expected.values())))


def test_pictures_decide_alone_and_rows_of_a_batch_too():
    """Two pictures of 12 tokens in the first row, one in the second: the shares 5 and 5, and 7."""
    rows, keys, hidden = drawn(2, 24, 7)
    grids = [raster_grid(3, 4, 2, n=24), raster_grid(3, 4, 1, n=24)]
    grid = Grid(*(torch.cat([getattr(one, name) for one in grids]) for name in Grid.__dataclass_fields__))
    for merged in ("centre", "behind"):
        more = {"merged": merged, "positions": "renumber"}
        together = select(rows, keys, hidden, (24, 12), (10, 7), grid, **more)
        assert together.features is not None
        for row, start, count in ((0, 0, 5), (0, 12, 5), (1, 0, 7)):
            part = slice(start, start + 12)
            one = rows[row, :, :, part][None], keys[row, :, part][None], hidden[row, part][None]
            alone = select(*one, (12,), (count,), raster_grid(3, 4), **more)
            mine = together.kept[row] - start
            slots = [slot for slot, token in enumerate(mine.tolist()) if 0 <= token < 12 and slot < (10, 7)[row]]
            assert mine[slots].tolist() == alone.kept[0].tolist()
            assert alone.features is not None
            torch.testing.assert_close(together.features[row, slots], alone.features[0])


def test_shares_are_in_proportion_and_exact():
    grid, valid = raster_grid(2, 2, 3, n=14), torch.arange(14).expand(1, 14) < 13
    pictures = Groups.pictures(grid, valid)  # 4 + 4 + 4 tokens, one without a place, which goes to the first image
    assert pictures.size[0, :13].tolist() == [5] * 4 + [4] * 8 + [5]
    share = pictures.share([7])[0]
    assert [share[index].item() for index in (0, 4, 8)] == [2, 2, 3]
    assert [pictures.share([4], among=[7])[0, index].item() for index in (0, 4, 8)] == [1, 1, 2]
    assert pictures.rank(torch.arange(14).expand(1, 14) % 4)[0, 4:8].tolist() == [3, 2, 1, 0]


def test_parameters():
    assert VisionZip(block=-3).wants_vision_blocks(-2) == (-3,)
    assert VisionZip(keep_count=64).label() == "visionzip(keep_count=64)"
    with pytest.raises(ValidationError, match="renumber"):
        VisionZip(merged="behind")
