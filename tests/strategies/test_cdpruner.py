"""``cdpruner`` against determinants, and whose text it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import PrivateAttr
from torch import Tensor

from tests.clip import clip_folder, in_folder
from tests.generate.processing import processor_for
from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import counts_tensor, layer_site, raster_grid, tiled_grid
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import Grid, Need
from tokentrim.contracts.toolkit.clip import ClipSpace
from tokentrim.errors import StrategyError, UnsupportedError
from tokentrim.session import trim
from tokentrim_strategies.cdpruner import CDPruner


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select(
    features: Tensor, text: Tensor, behind: list[list[int]], n: tuple[int, ...], counts: tuple[int, ...], grid: Grid,
    **parameters: Any,
) -> Selection:  # fmt: skip
    """``behind``: of every text token -1 in padding, 1 behind the picture, else 0."""
    where = torch.tensor(behind)
    data = {
        Need.FEATURES: features,
        Need.TEXT_EMBEDS: (text, where >= 0),
        Need.TEXT_IDS: (where, where >= 0, where == 1),
        Need.GRID: grid,
    }
    selection = CDPruner(**parameters).select(layer_site(n, data), counts_tensor(*counts))
    selection.check(n, static=counts)
    selection.check_indices(n)
    return selection


def slow(features: Tensor, relevance: list[float], count: int) -> list[int]:
    """Every set one larger, by its determinant."""
    unit = torch.nn.functional.normalize(features, dim=-1) * torch.tensor(relevance, dtype=torch.float64).unsqueeze(1)
    kernel, chosen = unit @ unit.T, list[int]()
    while len(chosen) < count:
        free = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(free, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    return sorted(chosen)


def rated(features: Tensor, text: Tensor, sign: float) -> list[float]:
    q = [sign * float(torch.cosine_similarity(x, text, dim=-1).mean()) for x in features]
    return [(one - min(q) + 1e-6) / (max(q) - min(q)) if max(q) > min(q) else 1.0 for one in q]


@given(n=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=50)
def test_equals_the_determinants(n: int, seed: int, data: st.DataObject):
    count, sign = data.draw(st.integers(0, min(n, 6))), data.draw(st.sampled_from(["plus", "minus"]))
    features, text = drawn(1, n, 16, seed=seed), drawn(1, 3, 16, seed=seed + 1)
    kept = select(features, text, [[0, 1, 1]], (n,), (count,), raster_grid(1, n), sign=sign).kept[0].tolist()
    assert kept == slow(features[0], rated(features[0], text[0, 1:], 1.0 if sign == "plus" else -1.0), count)


def test_extremes_are_those_of_all_tiles():
    features, text = drawn(1, 12, 8, seed=0), drawn(1, 2, 8, seed=1)
    kept = select(features, text, [[0, 0]], (12,), (4,), tiled_grid(2, 6)).kept[0].tolist()
    relevance = rated(features[0], text[0], 1.0)
    parts = [slow(features[0, 6 * t : 6 * t + 6], relevance[6 * t : 6 * t + 6], 2) for t in (0, 1)]
    assert kept == parts[0] + [6 + token for token in parts[1]]


def test_ragged_rows_equal_single_rows():
    """Rows with a question behind the picture, in front of it, and without text."""
    n, counts, behind = (15, 9, 0, 12), (6, 3, 0, 5), [[0, 1, 1], [0, 0, -1], [1, 1, 1], [-1, -1, -1]]
    features, text = drawn(4, 15, 32, seed=3), drawn(4, 3, 32, seed=4)
    grids = [raster_grid(1, own, n=15) for own in n]
    grid = Grid(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in grids), strict=True)))
    together = select(features, text, behind, n, counts, grid)
    for row, (own, count) in enumerate(zip(n, counts, strict=True)):
        if own:
            real = [one for one in behind[row] if one >= 0]
            alone = (features[row : row + 1, :own], text[row : row + 1, : len(real)], [real], (own,), (count,))
            kept = select(*alone, raster_grid(1, own)).kept[0].tolist()
            assert together.kept[row, :count].tolist() == kept


@pytest.mark.parametrize(("sign", "first"), [(None, 1), ("plus", 1), ("minus", 2)])
def test_one_token_is_the_most_relevant_one(sign: Any, first: int):
    features = torch.tensor([[[1.0, 1.0], [0.1, 2.0], [3.0, 0.0]]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    assert select(features, text, [[0, 1]], (3,), (1,), raster_grid(1, 3), sign=sign).kept.tolist() == [[first]]


# ---------------------------------------------------------------------- with CLIP's text tower


class Seen(CDPruner):
    """Notes what it compares."""

    _seen: list[Any] = PrivateAttr(default_factory=list)

    def relevance(self, images: Tensor, text: Tensor, asked: Tensor, valid: Tensor) -> Tensor:
        self._seen.append((images, text, asked, super().relevance(images, text, asked, valid)))
        return self._seen[-1][-1]


def test_with_clip_it_reads_the_question_and_minus_is_meant(tmp_path: Path):
    """In a model: the text behind the picture, in CLIP's space, against the tower's own tokens."""
    model = tiny_llava(side=4)
    inputs = prompt(model, [11, "image", 4], ["image", 12])
    model = in_folder(model, processor_for(model), tmp_path / "model")
    strategy = Seen(text_tower=clip_folder(tmp_path / "clip", model.config.vision_config.hidden_size))
    with trim(model, strategy), torch.no_grad():
        model(**inputs)
    images, text, asked, relevance = strategy._seen[0]
    space = ClipSpace.of(tmp_path / "clip", torch.device("cpu"))
    with torch.no_grad():
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(images, space.images(tower))
    behind = [
        " ".join(f"w{token}" for token in ids[-n:])
        for ids, n in zip(inputs["input_ids"].tolist(), (4, 12), strict=True)
    ]
    expected = space.texts(behind)
    torch.testing.assert_close(text, expected[0])
    assert asked.tolist() == expected[1].tolist() == [[True, False], [True, True]]
    alike = torch.cosine_similarity(images[0], text[0, 0], dim=-1)
    assert relevance[0].argsort().tolist() == alike.argsort(descending=True).tolist()


def test_what_clip_asks_for_is_refused_where_it_is_not(tmp_path: Path):
    model = tiny_llava(side=4)
    width = model.config.vision_config.hidden_size
    with pytest.raises(UnsupportedError, match="tokenizer of the model.*made in memory"):
        trim(model, CDPruner(text_tower=clip_folder(tmp_path / "clip", width)))
    model.config.name_or_path = str(tmp_path)
    with pytest.raises(UnsupportedError, match="tokenizer of the model"):
        trim(model, CDPruner(text_tower=tmp_path / "clip"))
    model = in_folder(model, processor_for(model), tmp_path)
    with pytest.raises(StrategyError, match=f"as wide as the model's, {width}; got {2 * width}"):
        trim(model, CDPruner(text_tower=clip_folder(tmp_path / "other", 2 * width)))
    assert Need.TEXT not in CDPruner().needed()
