"""What a task is: pictures, questions, answers, and which picture regions the answers need.

The comparison and the plugins' tasks meet here. Nothing in this file needs torch, so that tasks can be
listed, looked at and scored without a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokentrim.reading import Video

Split = Literal["calibration", "test"]
Metric = Literal["exact", "f1", "graded"]  # right or wrong; overlap of lists; any other number per answer
_TO_TRAIN_ON: Final = 1024  # calibration samples, for tasks without samples of their own
_HANDFUL: Final = 32


@dataclass(frozen=True)
class Evidence:
    """An image region that the answer needs: a half-open pixel box.

    weight 1.0 marks an object that the question is about; a lower one (0.5) another object of the picture. image: its
    number; a video's comes after those of the images, and its box is one in each of its frames.
    """

    top: int
    left: int
    bottom: int
    right: int
    image: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One question.

    id: stable over versions, e.g. "where/test/0007". question: plain text, to be put into the model's own
    chat template after the images and videos. messages: where that does not say it all (several turns, a system prompt,
    images between words), the whole conversation as chat templates take it: {"role": ..., "content": [...]}, each
    {"type": "image"} standing for the next of the images, {"type": "video"} for the next of the videos.
    """

    id: str
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    evidence: tuple[Evidence, ...] = ()
    messages: tuple[Mapping[str, Any], ...] | None = None
    videos: tuple[Video, ...] = ()


class Task(ABC):
    """A named set of questions with one way of scoring answers."""

    name: str
    metric: Metric
    max_new_tokens: int
    description: str
    metric_name: str = ""
    """What reports call the metric; empty: as ``metric`` says."""

    @abstractmethod
    def samples(self, split: Split, n: int) -> Sequence[Sample]:
        """The first n samples of a split.

        Deterministic and prefix-stable: a shorter list is the beginning of a longer one. The splits share no
        picture.
        """

    def count(self, split: Split) -> int | None:
        """How many samples a split has, where it has so few that somebody may ask for more; None: enough."""
        del split
        return None

    def training(self, handful: int) -> Sequence[Sample]:
        """Samples to train on: a handful of an endless row of them, by its number.

        Deterministic. They share no picture with the test split. A task that cannot make samples of its own gives its
        calibration split away, again and again; what is trained on it must not be calibrated on it as well.
        """
        fixed = self.samples("calibration", _TO_TRAIN_ON)
        parts = max(1, len(fixed) // _HANDFUL)
        return fixed[handful % parts :: parts]

    @abstractmethod
    def score(self, sample: Sample, prediction: str) -> float | None:
        """How good a decoded answer is, 0 to 1; None where the metric knows no such number for a single answer."""

    def aggregate(self, answered: Sequence[tuple[Sample, str]]) -> float | None:
        """The score of all answers together; None: the mean of their scores.

        Args:
            answered: the samples that have an answer, with it.
        """
        del answered
        return None


def evidence_scores(
    evidence: Sequence[Evidence], height: int, width: int, rows: int, cols: int, image: int = 0
) -> NDArray[np.float64]:
    """Relevance of every visual token of one picture, [rows * cols] in raster order; higher is more relevant.

    height, width: of the picture in pixels; rows, cols: of its token grid. Regions of weight 1 come before
    those of weight 0.5, and all of them before the background. Within a weight, the tokens that hold a
    region's centre come first, then the others that a region touches, the largest overlap first. The
    background is ranked so that any number of its tokens is a uniform sample of the picture, and not its
    first rows.
    """
    spread = _spread(rows, cols)
    scores = 0.5 * spread
    for region in sorted(evidence, key=lambda region: region.weight):
        if region.image != image:
            continue
        vertical = _overlap(region.top, region.bottom, height, rows)
        horizontal = _overlap(region.left, region.right, width, cols)
        share = np.outer(vertical, horizontal).ravel()
        peak = share.max(initial=0.0)
        if peak == 0.0:
            continue
        tier = _tier(region.weight)
        touched = share > 0
        # The overlap rules; the spread-out background score breaks ties, so that no corner of the picture
        # wins.
        relevance = tier + 0.5 * share[touched] / peak + 0.1 * spread[touched]
        scores[touched] = np.maximum(scores[touched], relevance)
        row = min(rows - 1, (region.top + region.bottom) // 2 * rows // height)
        col = min(cols - 1, (region.left + region.right) // 2 * cols // width)
        scores[row * cols + col] = max(scores[row * cols + col], tier + 1.0)
    return scores


def evidence_over(
    evidence: Sequence[Evidence],
    sizes: Sequence[tuple[int, int]],
    image: NDArray[np.int64],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Relevance of any visual tokens, each at (row, col) of a plane of rows x cols tokens over its image, [tokens].

    sizes: (height, width) of every image in pixels. A tiled image has two planes, which are ranked side by side: the
    same region counts as much in the coarse one as in the fine one. A token whose row is -1 shows nothing (the end of
    a line, for instance) and gets 0, the lowest score: whether it must stay is not a question of evidence.

    Raises:
        ValueError: when a token lies outside its plane, or an image has no size.
    """
    real = row >= 0
    if ((row >= rows) | (col >= cols) | (col < 0))[real].any():
        raise ValueError("tokens must lie inside their planes")
    if image[real].max(initial=-1) >= len(sizes):
        raise ValueError(f"every image must have a size; got {len(sizes)} sizes for image {image[real].max()}")
    scores = np.zeros(len(row))
    for number, down, across in {*zip(image[real].tolist(), rows[real].tolist(), cols[real].tolist(), strict=True)}:
        here = real & (image == number) & (rows == down) & (cols == across)
        height, width = sizes[number]
        plane = evidence_scores(evidence, height, width, down, across, number)
        scores[here] = plane[row[here] * across + col[here]]
    return scores


def _tier(weight: float) -> float:
    """Lowest score of a region's tokens; its centre scores 1 more. Half a weight is a gap of 2."""
    return 1.0 + 4.0 * weight


def _overlap(start: int, stop: int, length: int, parts: int) -> NDArray[np.float64]:
    """Length of [start, stop) in each of `parts` equal parts of [0, length)."""
    edges: Any = np.arange(parts + 1) * (length / parts)
    return np.maximum(np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1]), 0.0)


def _spread(rows: int, cols: int) -> NDArray[np.float64]:
    """Distinct numbers in [0, 1): any share of the highest is spread over the whole grid.

    The generalised golden ratio's two-dimensional additive sequence gives neighbours unlike numbers.
    """
    row, col = np.divmod(np.arange(rows * cols), cols)
    return (row * 0.7548776662466927 + col * 0.5698402909980532) % 1.0
