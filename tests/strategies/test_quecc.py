"""``quecc`` against loops over windows, written from the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape, raster_grid
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.contracts.toolkit.cells import windows_of
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import StrategyError
from tokentrim.train.runner import trainer_of
from tokentrim_strategies._quecc_module import Compressor
from tokentrim_strategies._quecc_training import PromptOnly
from tokentrim_strategies.quecc import QueCC

WIDTH = 16


def cells_of(rows: int, cols: int, side: int, images: int) -> dict[int, list[tuple[int, int, int]]]:
    """Representative -> (token, row in the cell, column in the cell) of its cell, by loops."""
    r, c = min(side, rows), min(side, cols)
    cells: dict[tuple[int, int, int], list[int]] = {}
    for token in range(images * rows * cols):
        image, place = divmod(token, rows * cols)
        y, x = divmod(place, cols)
        cells.setdefault((image, y * r // rows, x * c // cols), []).append(token)
    found: dict[int, list[tuple[int, int, int]]] = {}
    for members in cells.values():
        at = [(token % (rows * cols) // cols, token % cols) for token in members]
        top, left = min(y for y, _ in at), min(x for _, x in at)
        bottom, right = max(y for y, _ in at), max(x for _, x in at)
        far = [(2 * y - top - bottom) ** 2 + (2 * x - left - right) ** 2 for y, x in at]
        found[members[far.index(min(far))]] = [(t, y - top, x - left) for t, (y, x) in zip(members, at, strict=True)]
    return dict(sorted(found.items()))


@given(rows=st.integers(1, 11), cols=st.integers(1, 11), side=st.sampled_from([1, 2, 4, 6]), images=st.integers(1, 3))
def test_windows_equal_the_slow_definition(rows: int, cols: int, side: int, images: int):
    kernel = -(-max(rows, cols) // side)
    n = rows * cols * images
    windows = windows_of(raster_grid(rows, cols, images), 0, n, side, kernel)
    expected = cells_of(rows, cols, side, images)
    assert windows is not None
    assert windows.kept.tolist() == list(expected)
    for members, cell in zip(windows.members.tolist(), expected.values(), strict=True):
        places = {down * kernel + across: token for token, down, across in cell}
        assert members == [places.get(place, -1) for place in range(kernel * kernel)]


def test_windows_larger_than_the_kernel_are_told_and_structure_is_left_out():
    assert windows_of(raster_grid(4, 4), 0, 16, 2, 1) is None
    windows = windows_of(raster_grid(2, 2, n=7), 0, 7, 1, 2)
    assert windows is not None
    assert windows.kept.tolist() == [0]
    assert windows.members.tolist() == [[0, 1, 2, 3]]


def module_for(kernel: int, heads: int = 4, seed: int = 0) -> Compressor:
    torch.manual_seed(seed)
    module = Compressor(WIDTH, kernel, heads)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.double().requires_grad_(False)


def slow_token(
    module: Compressor, tokens: torch.Tensor, cell: list[tuple[int, int, int]], words: torch.Tensor
) -> torch.Tensor:
    """[d]: the token of one window of one sample, from the formulas, one vector at a time."""

    def added(layers: Any, x: torch.Tensor) -> torch.Tensor:
        return x + layers.mlp[2](F.gelu(layers.mlp[0](x)))

    def normed(layers: Any, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5) * layers.norm.weight + layers.norm.bias

    def mapped(layers: Any, x: torch.Tensor) -> torch.Tensor:
        return normed(layers, added(layers, x))

    asked = normed(module.question, torch.stack([added(module.question, word) for word in words]).mean(0))
    query = module.bias.clone()
    for token, down, across in cell:
        query = query + module.depthwise[down * module.kernel + across] * mapped(module.query, tokens[token] + asked)
    q = module.attend["q"](query).reshape(module.heads, -1)
    keys = [module.attend["k"](mapped(module.key, tokens[token])).reshape(module.heads, -1) for token, _, _ in cell]
    values = [module.attend["v"](mapped(module.value, tokens[token])).reshape(module.heads, -1) for token, _, _ in cell]
    heads: list[torch.Tensor] = []
    mean = torch.zeros(WIDTH, dtype=torch.float64)
    for head in range(module.heads):
        scores = [math.exp(float(q[head] @ key[head]) / math.sqrt(len(q[head]))) for key in keys]
        for s, (token, _, _) in zip(scores, cell, strict=True):
            mean += s / sum(scores) / module.heads * tokens[token]
        heads.append(sum(s / sum(scores) * value[head] for s, value in zip(scores, values, strict=True)))  # type: ignore[arg-type]
    taken = module.attend["out"](torch.cat(heads))
    return mean + module.project[2](F.gelu(module.project[0](taken)))


@pytest.fixture(autouse=True)
def in_double(monkeypatch: pytest.MonkeyPatch):
    """The module computes in float32; these tests hold it to a reference in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def site_for(
    strategy: QueCC, rows: int, cols: int, images: tuple[int, ...], seed: int = 0
) -> tuple[LayerSite, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(site, features, text, which text is real) of a batch with so many images per row."""
    generator = torch.Generator().manual_seed(seed)
    n_visual = tuple(rows * cols * count for count in images)
    batch = len(images)
    features = torch.randn(batch, max(n_visual), WIDTH, generator=generator, dtype=torch.float64)
    text = torch.randn(batch, 5, WIDTH, generator=generator, dtype=torch.float64)
    real = torch.arange(5) < torch.tensor([5 - row % 3 for row in range(batch)]).unsqueeze(1)
    grid = raster_grid(rows, cols, max(images), batch)
    site = layer_site(n_visual, {Need.FEATURES: features, Need.TEXT_EMBEDS: (text, real), Need.GRID: grid})
    object.__setattr__(site, "state", strategy.begin(PromptInfo(n_visual, model_shape(4, (rows, cols)))))
    return site, features, text, real


@pytest.mark.parametrize(
    ("rows", "cols", "tokens", "images"),
    [
        (6, 6, 4, (1,)),
        (5, 5, 4, (2, 1, 0)),
        (5, 7, 16, (1, 2)),
        (3, 3, 1, (2,)),
        (3, 4, 36, (1,)),
        (10, 10, 16, (1, 1)),
    ],
)
def test_golden(rows: int, cols: int, tokens: Any, images: tuple[int, ...]):
    strategy = QueCC(tokens=tokens)
    shape = model_shape(4, (rows, cols))
    module = module_for(strategy.sizes(shape)["kernel"])
    strategy = strategy.holding(module)
    site, features, text, real = site_for(strategy, rows, cols, images)
    counts = [dict(strategy.schedule(shape, n).steps)[0] if n else 0 for n in site.n_visual]
    selection = strategy.select(site, counts_tensor(*counts))
    selection.check(site.n_visual, static=tuple(counts))
    selection.check_indices(site.n_visual)
    assert selection.features is not None
    assert selection.features.shape == (len(images), max(counts), WIDTH)
    for row, count in enumerate(images):
        cells = cells_of(rows, cols, strategy.side, count)
        assert selection.kept[row, : counts[row]].tolist() == list(cells)
        assert len(cells) == counts[row]
        for slot, cell in enumerate(cells.values()):
            expected = slow_token(module, features[row], cell, text[row][real[row]])
            assert torch.allclose(selection.features[row, slot], expected, atol=1e-9)
        assert not bool(selection.features[row, counts[row] :].any())


def test_the_question_matters_and_only_its_words():
    module = module_for(2)
    members = torch.tensor([[[0, 1, 2, 3]]])
    features, text = torch.randn(1, 4, WIDTH).double(), torch.randn(1, 5, WIDTH).double()
    real = torch.tensor([[True, True, True, False, False]])
    first = module(features, members, text, real)
    text[0, 4] += 1.0
    assert torch.equal(module(features, members, text, real), first)
    text[0, 0] += 1.0
    assert not torch.allclose(module(features, members, text, real), first)


def test_untrained_it_is_a_mean_that_leans_to_what_resembles_the_question():
    module = Compressor(WIDTH, 3, 1).double().requires_grad_(False)
    features = torch.randn(1, 9, WIDTH).double()
    for token in range(9):
        text = features[:, token : token + 1]
        found = module(features, torch.arange(9).reshape(1, 1, 9), text, torch.ones(1, 1, dtype=torch.bool))
        weights = torch.linalg.lstsq(features[0].T, found[0, 0]).solution
        assert torch.allclose(weights.sum(), torch.tensor(1.0).double())
        assert int(weights.argmax()) == token


@pytest.mark.parametrize(
    ("tokens", "count"), [(1, 1), (4, 4), (16, 16), (36, 36)]
)  # fmt: skip
def test_the_count_is_per_picture(tokens: Any, count: int):
    shape = model_shape(4, (10, 10))
    assert QueCC(tokens=tokens).schedule(shape, 100) == Schedule.of({0: count})
    assert QueCC(tokens=tokens).schedule(shape, 300) == Schedule.of({0: 3 * count})
    assert QueCC(tokens=tokens).sizes(model_shape(4, (24, 24)))["kernel"] == 24 // math.isqrt(count)
    assert QueCC(tokens=tokens).made_for(shape)["tokens"] == tokens


def test_a_grid_smaller_than_the_lattice_stays_as_it_is():
    assert QueCC(tokens=36).schedule(model_shape(4, (3, 4)), 12) == Schedule.of({0: 12})


def test_models_without_a_grid_and_pictures_of_other_sizes_are_refused():
    with pytest.raises(StrategyError, match="have a grid of visual tokens for strategy 'quecc'"):
        QueCC().schedule(model_shape(4), 100)
    strategy = QueCC(tokens=4).holding(module_for(2))
    site, *_ = site_for(strategy, 6, 6, (1,))
    with pytest.raises(StrategyError, match="be cut into 4 windows of at most 2 x 2 tokens; got 'larger windows'"):
        strategy.select(site, counts_tensor(4))
    strategy = QueCC(tokens=4).holding(module_for(3))
    site, *_ = site_for(strategy, 6, 6, (1,))
    with pytest.raises(StrategyError, match="be cut into 8 windows .* got '4 windows'"):
        strategy.select(site, counts_tensor(8))


def test_weights_serve_one_count(tmp_path: Path):
    shape = model_shape(4, (10, 10))
    file = QueCC(tokens=4).untrained(shape, tmp_path / "four.safetensors")
    QueCC(tokens=4, weights=file).prepare(shape)
    with pytest.raises(StrategyError, match='"tokens": 1'):
        QueCC(tokens=1, weights=file).prepare(shape)


def test_training_hides_the_answer():
    module = module_for(2)
    members = torch.tensor([[[0, 1, 2, 3]]])
    features, text = torch.randn(1, 4, WIDTH).double(), torch.randn(1, 5, WIDTH).double()
    real = torch.tensor([[True, True, True, True, False]])
    asked = torch.tensor([[True, True, False, False, False]])
    hidden = PromptOnly(module, torch.tensor([2]))
    assert torch.equal(hidden(features, members, text, real), module(features, members, text, asked))
    assert trainer_of(QueCC()).__name__ == "QueCCTrainer"
