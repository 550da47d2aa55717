"""Parts of an axis against the loop of their definition."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from tokentrim.contracts.toolkit.cells import along


@given(size=st.integers(1, 12), parts=st.integers(0, 12))
def test_along_equals_the_loop(size: int, parts: int):
    parts = min(size, parts)
    place = torch.arange(size)
    part, inside, far = along(place, torch.full_like(place, size), torch.full_like(place, parts))
    mine = [at * parts // size for at in range(size)]  # no parts are one
    assert part.tolist() == mine
    for at in range(size):
        first = mine.index(mine[at])
        last = size - 1 - mine[::-1].index(mine[at])
        assert inside[at] == at - first
        assert far[at] == (2 * at - first - last) ** 2
