"""``framefusion``: its rounds and its cut against the loop of the definition, alone and in ragged batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.strategies.sites_factory import attention, counts_tensor, layer_site, model_shape, video_grid
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.sites import Grid, Need
from tokentrim.counting.published import PRESETS
from tokentrim.engine.tokens.stream import merge_features
from tokentrim_strategies.framefusion import FrameFusion

SHAPE = model_shape(8)
Found = list[list[tuple[list[int], Tensor]]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def walk(strategy: FrameFusion, hidden: Tensor, grid: Grid, rows: Tensor, n: tuple[int, ...]) -> Found:
    """Every boundary in turn, where layers add nothing: numbers and vectors of each row behind it."""
    state, ids, first = strategy.begin(PromptInfo(n, SHAPE)), torch.arange(max(n)).expand(len(n), -1), n
    found: Found = []
    for boundary in strategy.schedule(SHAPE, max(n)).boundaries:
        safe = ids.clamp(min=0)
        data: dict[Need, Any] = {Need.HIDDEN: hidden}
        data[Need.GRID] = Grid(*(getattr(grid, name).gather(1, safe) for name in Grid.__dataclass_fields__))
        if boundary:
            data[Need.LAST_ROW] = rows.gather(2, safe.unsqueeze(1).expand(-1, rows.shape[1], -1))
        site = replace(layer_site(n, data, boundary=boundary, ids=ids), state=state, shape=SHAPE)
        chosen = strategy.select(site, counts_tensor(*n))
        limit = tuple(strategy.schedule(SHAPE, one).count_at(boundary) for one in first)
        chosen.check(n, static=None, limit=limit)
        chosen.check_indices(n)
        at = chosen.kept.clamp(min=0)
        left = hidden.gather(1, at.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
        hidden = merge_features(hidden, chosen) if chosen.merges else left
        ids, n = ids.gather(1, at).masked_fill(chosen.kept < 0, -1), chosen.counts
        found.append([(ids[row, :k].tolist(), hidden[row, :k]) for row, k in enumerate(n)])
    return found


def slow(strategy: FrameFusion, hidden: Tensor, patches: int, row: Tensor) -> list[tuple[list[int], Tensor]]:
    """Tokens frame after frame, ``patches`` each; ``row`` is every layer's attention."""
    ids, merged, state, found = list(range(len(hidden))), list[float](), "merges", list[tuple[list[int], Tensor]]()
    vectors = dict(enumerate(hidden))
    for boundary in strategy.schedule(SHAPE, len(hidden)).boundaries:
        left, seen, n = 1.0, 0.0, len(ids)
        for share in merged:
            left *= 1 - share
            seen += left
        share = max(0.0, 1 - (8 * strategy.cost - seen) / ((8 - len(merged)) * left))
        if state == "merges" and boundary < strategy.latest:
            before = {i: max((j for j in ids if j < i and j % patches == i % patches), default=None) for i in ids}
            cosine = {
                i: float(torch.cosine_similarity(vectors[i], vectors[j], dim=0))
                for i, j in before.items()
                if j is not None
            }
            going = [i for i in cosine if cosine[i] >= strategy.similarity]
            if len(going) / n < share:
                merged.append(len(going) / n)
                state = "merges" if len(going) / n >= strategy.ratio else "prunes"
            else:
                going = sorted(cosine, key=lambda i: -cosine[i])[: int(share * n)]
                state = "done"
            groups: dict[int, list[int]] = {}
            for i in ids:
                head: int = i
                while head in going:
                    head = before[head]  # type: ignore[assignment]
                groups.setdefault(head, []).append(i)
            vectors = {head: torch.stack([vectors[i] for i in group]).mean(dim=0) for head, group in groups.items()}
            ids = sorted(groups)
        elif state != "done":
            ids, state = sorted(sorted(ids, key=lambda i: -float(row[i]))[: round(n * min(1, 1 - share))]), "done"
        found.append((ids, torch.stack([vectors[i] for i in ids]) if ids else hidden[:0]))
    return found


@given(
    frames=st.integers(1, 7), patches=st.integers(1, 6), seed=st.integers(0, 99),
    cost=st.sampled_from([0.3, 0.55, 1.0]), similarity=st.sampled_from([0.2, 0.6]), latest=st.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_equals_the_loop(frames: int, patches: int, seed: int, cost: float, similarity: float, latest: int):
    strategy = FrameFusion(cost=cost, similarity=similarity, latest=latest, ratio=0.15)
    n = frames * patches
    hidden, row = drawn(1, n, 3, seed=seed), attention(1, 2, n, seed=seed)
    found = walk(strategy, hidden, video_grid(frames, 1, patches), row, (n,))
    for (one,), (ids, vectors) in zip(found, slow(strategy, hidden[0], patches, row[0].float().mean(0)), strict=True):
        assert one[0] == ids
        torch.testing.assert_close(one[1], vectors)


def test_ragged_rows_equal_single_rows():
    """A video, an image, nothing, and a video whose last token has no place, which merges with nothing."""
    sizes = (24, 4, 0, 17)
    still = video_grid(6, 1, 4)
    grid = Grid(*(getattr(still, name).repeat(4, 1) for name in Grid.__dataclass_fields__))
    grid.row[3, 16] = -1
    hidden, rows = drawn(4, 24, 3), attention(4, 2, 24)
    hidden[3, 16] = hidden[3, 12]
    strategy = FrameFusion(cost=0.5, similarity=0.2)
    together = walk(strategy, hidden, grid, rows, sizes)
    assert 16 in together[0][3][0]
    for row, n in enumerate(sizes):
        part = Grid(*(getattr(grid, name)[row : row + 1, :n] for name in Grid.__dataclass_fields__))
        single = walk(strategy, hidden[row : row + 1, :n], part, rows[row : row + 1, :, :n], (n,)) if n else []
        for (own,), found in zip(single, together, strict=False):
            assert own[0] == found[row][0]
            torch.testing.assert_close(own[1], found[row][1])


def test_budget():
    strategy, realised = FrameFusion().at_budget(PRESETS["llava-1.5-7b"], 576, layer_mean_ratio=0.5)
    assert isinstance(strategy, FrameFusion)
    assert realised <= 0.5
    assert strategy.needed_at(0) == strategy.needed() - {Need.LAST_ROW}
