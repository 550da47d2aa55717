"""The control that acts before the processor: smaller pictures, at as many tokens as a budget allows.

It is no strategy: nothing is selected, the model runs untouched, on less picture. What a picture of fewer pixels still
answers needs no clever selection; a method earns its name on the rest.

The target is the number of tokens that ``uniform`` keeps at the same budget. How a picture is brought to it depends on
what the model's family does with sizes:

* **fewer tokens** (any resolution, tiles): the largest version of the picture, its aspect kept, that becomes at most
  that many visual tokens; where a processor has to be asked about each size, the largest that halving finds. All its
  costs are those of the smaller prompt, as shares of the full picture's.
* **same tokens** (towers of one resolution, such as CLIP at 336; and where even the smallest picture has more tokens
  than the target): the picture is shrunk until it has that share of the pixels that the tower looks at, and blown up
  to its old size. The information is that of the target; the cost is that of the unpruned run, and is reported so.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from PIL import Image

from tokentrim.config.specs import strategy_from
from tokentrim.counting.costs import Usage
from tokentrim.counting.forecast import planned_layer_tokens
from tokentrim.counting.shape import ModelShape, VisionShape
from tokentrim.counting.tilings import AnyResolution, FixedGrid
from tokentrim.errors import DataError
from tokentrim.runs.batches import Batch, make_batches
from tokentrim.runs.cells import Cell
from tokentrim.runs.work import PromptCounts, Unreachable, Work, solve

Form = Literal["fewer tokens", "same tokens"]
EQUAL: Final = "uniform"  # whose tokens are matched: it drops at the input and knows nothing


@dataclass(frozen=True)
class Shrunk:
    """One picture with less in it.

    Attributes:
        image: what the processor is given.
        form: how it was brought to the target.
        share: pixels that are left of those that the tower would have looked at.
    """

    image: Image.Image
    form: Form
    share: float


@dataclass(frozen=True)
class Smaller:
    """The questions of one task with smaller pictures.

    Attributes:
        work: the same questions as model inputs, with the counts of their full prompts.
        shares: pixels that are left, by place; mean over the question's pictures.
        forms: all that occur.
    """

    work: Work
    shares: dict[int, float]
    forms: tuple[Form, ...]


def smaller(cell: Cell, work: Work) -> Smaller:
    """The questions of a ``downscale`` cell.

    Raises:
        Unreachable: when ``uniform`` cannot be brought to the cell's budget, or a question is about a video.
    """
    if any(sample.videos for sample in work.samples):
        raise Unreachable("frames of videos are not made smaller: this control is one of pictures")
    rival = replace(cell, strategy=strategy_from(EQUAL), control=None)
    full: dict[int, PromptCounts] = {}
    target: dict[int, int] = {}
    for batch in work.batches:
        kept = planned_layer_tokens(solve(rival, work, batch).spatial_parts, cell.model.shape, batch.n_visual)[0]
        for place, n_text in zip(batch.places, batch.n_text, strict=True):
            full[place], target[place] = PromptCounts(batch.n_visual, n_text), kept
    vision = cell.model.shape.vision
    found = {
        place: [shrink(image, sample.images, vision, target[place], full[place].n_visual) for image in sample.images]
        for place, sample in enumerate(work.samples)
    }
    samples = [
        replace(sample, images=tuple(picture.image for picture in found[place]))
        for place, sample in enumerate(work.samples)
    ]
    return Smaller(
        work=replace(work, samples=samples, batches=make_batches(work.loaded, samples, cell.batch_size), full=full),
        shares={place: _mean([picture.share for picture in listed]) for place, listed in found.items()},
        forms=tuple(sorted({picture.form for listed in found.values() for picture in listed})),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def shrink(
    image: Image.Image, images: Sequence[Image.Image], vision: VisionShape | None, target: int, n_visual: int
) -> Shrunk:
    """One of a question's pictures with its share of ``target`` tokens' worth of information.

    Args:
        image: the picture.
        images: all pictures of its prompt, itself among them.
        vision: the model's vision tower; None where nothing is known of it.
        target: tokens that all pictures of the prompt may have together.
        n_visual: tokens that they have now.
    """
    if target >= n_visual:
        return Shrunk(image, "fewer tokens" if vision is not None and vision.varies else "same tokens", 1.0)
    ratio = target / n_visual
    if vision is not None and vision.varies:
        full = vision.for_image(image.height, image.width, len(images)).n_visual
        height = _tallest(image, vision, len(images), math.floor(full * ratio))
        if height is not None:
            width = _width(image, height)
            small = image.resize((width, height), Image.Resampling.BICUBIC)
            return Shrunk(small, "fewer tokens", height * width / (image.height * image.width))
    return _blown_up(image, _seen(image, vision, len(images)), ratio)


def _tallest(image: Image.Image, vision: VisionShape, images: int, target: int) -> int | None:
    """Height of the largest version of a picture with at most ``target`` tokens; None where there is none."""

    def count(height: int) -> int:
        """Tokens; 0 of a picture that is too thin to be accepted."""
        try:
            return vision.for_image(height, _width(image, height), images).n_visual
        except DataError:
            return 0

    if vision.tiling is not None and vision.tiling.asks:
        heights = range(1, image.height)
        height = bisect_right(heights, target, key=count)  # of as many heights as this one more would be too many
        return height if height and count(height) else None
    # Rounding to whole tokens makes the count no strictly rising function of the height, so every height is tried.
    return next((height for height in range(image.height - 1, 0, -1) if 0 < count(height) <= target), None)


def _width(image: Image.Image, height: int) -> int:
    """Width at which a picture of ``height`` keeps its aspect."""
    return max(1, round(image.width * height / image.height))


def _seen(image: Image.Image, vision: VisionShape | None, images: int) -> tuple[float, float]:
    """(height, width) in pixels at which the tower looks at a picture; its own where nothing is known."""
    if vision is not None and isinstance(vision.tiling, FixedGrid | AnyResolution):
        cut, pixels = vision.tiling.cut(image.height, image.width, images), vision.tiling.pixels / vision.tiling.side
        return cut.rows * pixels, cut.cols * pixels
    return float(image.height), float(image.width)


def _blown_up(image: Image.Image, seen: tuple[float, float], ratio: float) -> Shrunk:
    """A picture reduced to ``ratio`` of the pixels that are seen of it, and back at its old size."""
    # The processor scales the picture until it covers what the tower looks at.
    cover = max(seen[0] / image.height, seen[1] / image.width)
    scale = min(1.0, cover * math.sqrt(ratio))
    height, width = (max(1, math.floor(side * scale)) for side in (image.height, image.width))
    share = min(1.0, height * width / (image.height * image.width * cover**2))
    if (height, width) == (image.height, image.width):
        return Shrunk(image, "same tokens", share)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return Shrunk(small.resize(image.size, Image.Resampling.BICUBIC), "same tokens", share)


def ratios(shape: ModelShape, full: PromptCounts, batch: Batch, row: int, new_tokens: int) -> dict[str, float]:
    """The costs of one row with smaller pictures, as shares of the same question with its full pictures.

    Args:
        shape: the model's numbers.
        full: the prompt with full pictures.
        batch: the smaller prompts.
        row: of the batch.
        new_tokens: of the row's answer.
    """
    layers, steps = shape.n_layers, max(0, new_tokens - 1)
    small = (min(batch.n_visual, full.n_visual),) * layers
    mine = Usage(shape, full.n_visual, batch.n_text[row], small, (small,) * steps)
    theirs = replace(mine, n_text=full.n_text).unpruned()
    # Line ends go with the tokens of tiled pictures, so the other tokens of both prompts may differ in number.
    entries = [mine.entries(step) / theirs.entries(step) for step in (range(1, steps + 1) if steps else range(1))]
    return {
        **mine.ratios(),
        "flops_ratio": mine.prefill_flops / theirs.prefill_flops,
        "flops_ratio_field": mine.macs_per_layer / theirs.macs_per_layer,
        "kv_total_mean_ratio": _mean(entries),
    }
