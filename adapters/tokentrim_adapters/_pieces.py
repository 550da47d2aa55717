"""What families share that cut an image into tiles of the tower's size, each encoded on its own as a whole picture is.

The tower sees squares of patches; so many patches along each side become one visual token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokentrim import Adapter, AdapterError, Cut, Encoding, Layout, Modality, Places, Tiling, complaint


@dataclass(frozen=True)
class CutUp(Tiling):
    """What these families do with an image's size have in common.

    Attributes:
        pixels: height and width of a tile, and of the thumbnail.
        side: patches along each side of a tile.
        merge: patches along each side that become one visual token.
    """

    pixels: int
    side: int
    merge: int
    cls: ClassVar[int] = 0

    @property
    def tokens(self) -> int:
        """Visual tokens along each side of a piece."""
        return self.side // self.merge

    def cut_into(self, rows: int, cols: int, size: str, how: str) -> Cut:
        """What an image of ``size`` becomes: rows x cols tiles and a thumbnail, or, where (0, 0), one piece."""
        pieces, each = rows * cols + 1, self.tokens**2
        n = pieces * each
        return Cut(
            pieces=pieces,
            tokens=self.side**2 + self.cls,
            n_visual=n,
            n_structure=0,
            rows=max(rows, 1) * self.tokens,
            cols=max(cols, 1) * self.tokens,
            projected=n,
            note=f"{size} pixels become {how} of {self.pixels}x{self.pixels} pixels: {pieces} x {each} = {n} visual "
            "tokens",
        )


def tiling_of(layout: Layout) -> CutUp:
    """How a model's images are cut.

    Raises:
        AdapterError: when that is not known.
    """
    vision = layout.shape.vision
    if vision is None or not isinstance(vision.tiling, CutUp):
        whom = type(layout.entry).__name__
        raise AdapterError(complaint(whom, "have a vision config", None, "load a complete model"))
    return vision.tiling


class PiecesAdapter(Adapter):
    """What adapters of these families have in common."""

    reads_prompts: ClassVar[bool] = True

    def fixed_length(self, layout: Layout, modality: Modality) -> int | None:
        """Every piece becomes the same number of tokens."""
        return tiling_of(layout).tokens ** 2 if modality == "image" else None

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """Mean over the patches of each visual token, piece by piece."""
        return arrange(rows, tiling_of(layout).tokens, tiling_of(layout).merge)


def arrange(rows: Sequence[Tensor], side: int, merge: int) -> Tensor:
    """float [H, pieces * side**2]: [pieces, H, tokens] each, the mean over the patches of a visual token.

    Args:
        rows: of the patches, behind [CLS] tokens or not; or of the visual tokens themselves.
        side: visual tokens along each side of a piece.
        merge: patches along each side of a visual token.

    Raises:
        AdapterError: when a piece has another number of tokens.
    """
    found: list[Tensor] = []
    for piece in rows:
        if piece.shape[-1] != side**2:
            patches = (side * merge) ** 2
            if piece.shape[-1] < patches:
                raise AdapterError(
                    complaint("a piece of an image", f"be {patches} patches in the vision tower", piece.shape[-1],
                              "the family has drifted from what this adapter knows; please report the version")
                )  # fmt: skip
            cells = piece[..., piece.shape[-1] - patches :].unflatten(-1, (side, merge, side, merge))
            piece = cells.mean((-3, -1)).flatten(-2)
        found.append(piece.permute(1, 0, 2).flatten(1))
    return torch.cat(found, dim=1)


def tiles(tile_rows: int, tile_cols: int, side: int) -> Places:
    """Tiles one after another, in reading order, as one plane (number 1) of side x side tokens each."""
    number = torch.arange(tile_rows * tile_cols * side**2)
    tile, inside = number // side**2, number % side**2
    return Places(
        frame=torch.zeros_like(number),
        plane=torch.ones_like(number),
        tile=tile + 1,
        row=tile // tile_cols * side + inside // side,
        col=tile % tile_cols * side + inside % side,
        rows=torch.full_like(number, tile_rows * side),
        cols=torch.full_like(number, tile_cols * side),
    )


def cut_up(tile_rows: int, tile_cols: int, side: int) -> Places:
    """An image's tiles, and its thumbnail (plane 0) behind them; the thumbnail alone where it has no tiles."""
    thumbnail = Places.raster(side, side)
    return Places.joined([tiles(tile_rows, tile_cols, side), thumbnail]) if tile_rows else thumbnail


def runs(tokens: Tensor, placeholder: int) -> list[tuple[int, int]]:
    """First column, and the one behind the last, of each unbroken run of placeholders in int64 [T]."""
    here = torch.nn.functional.pad((tokens == placeholder).long(), (1, 1)).diff()
    starts, ends = (here == 1).nonzero()[:, 0], (here == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
