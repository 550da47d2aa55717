"""Hand-made sites: what the engine would hand to a strategy, from tensors written in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.sites import Grid, LayerSite, Need, StepSite
from tokentrim.counting.shape import ModelShape, VisionShape


def model_shape(n_layers: int = 32, grid: tuple[int, int] | None = None) -> ModelShape:
    """A model with ``n_layers`` layers and, where given, a fixed grid of visual tokens."""
    vision = None
    if grid is not None:
        n = grid[0] * grid[1]
        vision = VisionShape(2, 8, 16, n_tokens=n, n_visual=n, rows=grid[0], cols=grid[1])
    return ModelShape(n_layers, 16, 2, 2, 8, 32, 100, vision=vision, name="handmade")


def _shared(
    n_visual: tuple[int, ...], data: Mapping[Need, Any], ids: Tensor | None, keys: tuple[int, ...] | None
) -> dict[str, Any]:
    width = max(n_visual, default=0)
    numbers = torch.arange(width).expand(len(n_visual), width)
    valid = numbers < torch.tensor(n_visual).unsqueeze(1)
    providers: dict[Need, Callable[[], Any]] = {need: lambda value=value: value for need, value in data.items()}
    return {
        "shape": model_shape(),
        "n_visual": n_visual,
        "ids": (numbers if ids is None else ids).masked_fill(~valid, -1),
        "valid": valid,
        "state": None,
        "keys_of_rows": torch.tensor(keys if keys is not None else tuple(range(1, len(n_visual) + 1))),
        "needs": frozenset(data),
        "providers": providers,
    }


def layer_site(
    n_visual: tuple[int, ...],
    data: Mapping[Need, Any] | None = None,
    *,
    boundary: int = 0,
    ids: Tensor | None = None,
    keys: tuple[int, ...] | None = None,
    projector: Callable[[Tensor], Tensor] | None = None,
) -> LayerSite:
    """A spatial site whose needs are exactly the keys of ``data``."""
    return LayerSite(**_shared(n_visual, data or {}, ids, keys), boundary=boundary, projector=projector)


def step_site(
    n_visual: tuple[int, ...],
    data: Mapping[Need, Any] | None = None,
    *,
    step: int = 1,
    layer: int = 0,
    ids: Tensor | None = None,
) -> StepSite:
    """A temporal site whose needs are exactly the keys of ``data``."""
    return StepSite(**_shared(n_visual, data or {}, ids, None), step=step, layer=layer)


def raster_grid(rows: int, cols: int, images: int = 1, batch: int = 1, n: int | None = None) -> Grid:
    """The grid of ``images`` images in raster order; tokens past them, up to ``n``, have no place."""
    per_image = rows * cols
    total = images * per_image
    index = torch.arange(total)
    zero = torch.zeros_like(index)
    columns = [index // per_image, zero, zero, zero, index % per_image // cols, index % cols, zero + rows, zero + cols]
    spare = torch.full(((n or total) - total,), -1)
    return Grid(*(torch.cat([column, spare]).expand(batch, -1) for column in columns))


def tiled_grid(tiles: int, patches: int) -> Grid:
    """A row of ``tiles`` tiles of ``patches`` tokens each, one tile after the other; places inside them left at 0."""
    zero = torch.zeros(1, tiles * patches, dtype=torch.int64)
    return Grid(zero, zero, zero, torch.arange(tiles).repeat_interleave(patches).unsqueeze(0), zero, zero, zero, zero)


def video_grid(frames: int, rows: int, cols: int) -> Grid:
    """The grid of one video, frame after frame."""
    still = raster_grid(rows, cols, images=frames)
    return replace(still, image=torch.zeros_like(still.image), frame=still.image)


def attention(*shape: int, seed: int = 0) -> Tensor:
    """Positive numbers that look like attention; no two equal in practice."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts_tensor(*counts: int) -> Tensor:
    """What the engine hands to ``select`` as ``count``."""
    return torch.tensor(counts, dtype=torch.int64)
