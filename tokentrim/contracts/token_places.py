"""Which rectangle of a picture each visual token stands for: what drawings of kept tokens need to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field, model_validator

if TYPE_CHECKING:
    from PIL import Image

    from tokentrim.contracts.sites import Grid
    from tokentrim.reading import Video

MOST_TOKENS: Final = 2**18
"""More visual tokens than one prompt of any model has; a file that says more is none of ours."""
IN_ORDER: Final = "tokens in their order, not in their places"
"""What is said of tokens whose places are not known; see :meth:`Cells.in_order`."""
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS, strict=True)]
_Number = Annotated[int, Field(ge=-1, le=MOST_TOKENS, strict=True)]


class GridRecord(BaseModel):
    """What :meth:`Cells.as_dict` wrote, as a file may hold it."""

    planes: list[tuple[Count, Count, Count, Count, Count]]
    runs: list[tuple[_Number, Count, Count]]

    @model_validator(mode="after")
    def _inside(self) -> GridRecord:
        sizes = [rows * cols for *_, rows, cols in self.planes]
        if any(not 0 < size <= MOST_TOKENS for size in sizes) or self.n_tokens > MOST_TOKENS:
            raise ValueError(f"planes and runs of tokens must have 1 to {MOST_TOKENS} tokens")
        for plane, first, count in self.runs:
            if plane >= len(sizes) or (plane >= 0 and first + count > sizes[plane]):
                raise ValueError(f"the run {[plane, first, count]} must lie in a plane")
        return self

    @property
    def n_tokens(self) -> int:
        """Visual tokens in all."""
        return sum(count for _, _, count in self.runs)


@dataclass(frozen=True)
class Plane:
    """One rectangle of tokens that covers a whole picture (see :class:`tokentrim.contracts.sites.Grid`)."""

    image: int
    frame: int
    plane: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Cells:
    """Planes of one sample, and where in them its visual tokens lie.

    Attributes:
        planes: in order of image, frame and plane.
        plane: number of the plane of each visual token, -1 where it lies nowhere.
        place: raster number of each visual token in its plane.
    """

    planes: tuple[Plane, ...]
    plane: tuple[int, ...]
    place: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid, row: int = 0) -> Cells:
        """The cells of one row of a prompt's grid."""
        real = grid.image[row] >= 0
        names = ("image", "frame", "plane", "rows", "cols", "row", "col")
        tokens = list(zip(*(getattr(grid, name)[row][real].tolist() for name in names), strict=True))
        planes = sorted({token[:5] for token in tokens if token[5] >= 0})
        numbers = {plane: number for number, plane in enumerate(planes)}
        return cls(
            tuple(Plane(*plane) for plane in planes),
            tuple(numbers[token[:5]] if token[5] >= 0 else -1 for token in tokens),
            tuple(token[5] * token[4] + token[6] for token in tokens),
        )

    @classmethod
    def in_order(cls, n: int) -> Cells:
        """``n`` tokens in rows of a square, one after another: where it is not known where they lie."""
        side = max(1, math.isqrt(max(n - 1, 0)) + 1)
        return cls((Plane(0, 0, 0, -(-max(n, 1) // side), side),), (0,) * n, tuple(range(n)))

    def inside(self, number: int, kept: Sequence[int]) -> list[int]:
        """Places in plane ``number`` of those of the ``kept`` tokens that lie in it."""
        return [self.place[token] for token in kept if self.plane[token] == number]

    def finest(self, image: int = 0) -> int:
        """Number of an image's plane with the most tokens."""
        own = [number for number, plane in enumerate(self.planes) if plane.image == image]
        return max(own, key=lambda number: self.planes[number].rows * self.planes[number].cols)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a results file: planes, and runs of tokens that lie side by side in one of them."""
        runs: list[list[int]] = []
        for plane, place in zip(self.plane, self.place, strict=True):
            last = runs[-1] if runs else None
            if last is not None and last[0] == plane and (plane < 0 or last[1] + last[2] == place):
                last[2] += 1
            else:
                runs.append([plane, max(place, 0), 1])
        return {"planes": [[p.image, p.frame, p.plane, p.rows, p.cols] for p in self.planes], "runs": runs}

    def drawn(
        self, images: Sequence[Image.Image], videos: Sequence[Video]
    ) -> tuple[Cells, list[Image.Image], list[str]]:  # fmt: skip
        """The same cells with each frame of a video as a picture of its own, these pictures behind the images, and
        what each picture is called: nothing, where it is the only one.

        Of frames that a model merges, the first is shown. What draws tokens knows pictures alone.
        """
        first = len(images)
        seen = sorted({(plane.image, plane.frame) for plane in self.planes if plane.image >= first})
        numbers = {place: first + number for number, place in enumerate(seen)}
        planes = tuple(
            replace(plane, image=numbers[plane.image, plane.frame], frame=0) if plane.image >= first else plane
            for plane in self.planes
        )
        owners = sorted({image for image, _ in seen})
        frames = [[(number, place) for place in range(len(video.frames))] for number, video in enumerate(videos)]
        # To some families each frame is an image: then all frames there are stand for all of these.
        parts = frames if len(owners) == len(videos) else [[one for part in frames for one in part]]
        pictures, names = list(images), [f"image {number + 1}" for number in range(first)]
        for number, part in enumerate(parts):
            own = [place for place in seen if len(parts) == 1 or place[0] == owners[number]]
            for begin, end in _merged(len(part), len(own)):
                which, frame = part[begin]
                pictures.append(videos[which].frames[frame])
                named = f"video {which + 1}" if len(videos) > 1 else "video"
                names.append(videos[which].called(frame, frame + end - begin, named))
        return replace(self, planes=planes), pictures, names if len(pictures) > 1 or videos else [""] * first

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cells:
        """What :meth:`as_dict` made; the place of a token that lies nowhere means nothing."""
        tokens = [(plane, first + n) for plane, first, count in data["runs"] for n in range(count)]
        return cls(
            tuple(Plane(*plane) for plane in data["planes"]),
            tuple(plane for plane, _ in tokens),
            tuple(place for _, place in tokens),
        )


def _merged(frames: int, groups: int) -> list[tuple[int, int]]:
    """First and last frame of each group that a model merges: the last group may have fewer, which are padded."""
    size = -(-frames // groups)
    if -(-frames // size) != groups:  # a processor has chosen frames of its own: about these
        edges = [group * frames // groups for group in range(groups + 1)]
        return [(begin, max(begin, end - 1)) for begin, end in pairwise(edges)]
    return [(begin, min(begin + size, frames) - 1) for begin in range(0, frames, size)]
