"""Prompts for a small copy: pictures of noise in whatever form the model takes them, found by trying the usual ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tokentrim.selftest.shrink import TEXT_TOKENS, picture_size

Form = dict[str, tuple[int, ...] | list[list[int]]]
"""Inputs of one picture by name: the shape of a tensor of noise, or rows of integers."""

_KNOWN: Final = frozenset({"pixel_values", "image_grid_thw", "image_sizes", "spatial_shapes", "pixel_attention_mask"})
_APART: Final = 100  # seeds of the pictures of one row
_SIDE: Final = 56
_GRID: Final = (8, 12)
"""Patches down and across, of towers that take any: not a square, so that rows and columns cannot be confused."""


@dataclass(frozen=True)
class Maker:
    """Makes prompts with pictures of one form.

    Attributes:
        form: the form of pictures that the model accepted.
        lengths: placeholders that a picture takes, piece by piece where it is encoded in pieces.
        token: id of the placeholder.
        around: ids that stand before and behind a picture's placeholders.
        kinds: name of the input that tells pictures from text, or None where the model takes none.
    """

    form: Form
    lengths: tuple[int, ...]
    token: int
    around: tuple[tuple[int, ...], tuple[int, ...]]
    kinds: str | None

    @property
    def length(self) -> int:
        """Placeholders that a picture takes."""
        return sum(self.lengths)

    def prompt(self, *rows: tuple[int, ...], seeds: Sequence[int]) -> dict[str, Any]:
        """A left-padded batch.

        Args:
            rows: text tokens of each row: before its first picture, between pictures, and behind the last, which must
                be >= 1. One number is a row without a picture, two are one with one picture, and so on.
            seeds: one per row: the content of its text and pictures.
        """
        lines = [self._line(texts, seed) for texts, seed in zip(rows, seeds, strict=True)]
        width = max(len(line) for line in lines)
        ids = torch.zeros(len(lines), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, line in enumerate(lines):
            ids[row, width - len(line) :], mask[row, width - len(line) :] = line, 1
        made: list[dict[str, Tensor]] = [
            noise(self.form, seed + _APART * number)
            for texts, seed in zip(rows, seeds, strict=True)
            for number in range(len(texts) - 1)
        ]
        found: dict[str, Any] = {name: torch.cat([one[name] for one in made]) for name in self.form if made}
        found |= {"input_ids": ids, "attention_mask": mask}
        if self.kinds is not None:
            found[self.kinds] = (ids == self.token).long()
        return found

    def _line(self, texts: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(3, TEXT_TOKENS, (sum(texts),), generator=generator).split(list(texts))
        left, right = (torch.tensor(ids, dtype=torch.long) for ids in self.around)
        picture = [left, torch.full((self.length,), self.token), right]
        return torch.cat([text[0], *(part for words in text[1:] for part in (*picture, words))])


def maker_for(model: Any, entry: nn.Module, token: int) -> Maker | str:
    """A maker of prompts for a small copy, or why there is none."""
    encode: Any = entry.get_image_features
    parameters = inspect.signature(encode).parameters
    wanted = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    unknown = [name for name in wanted if name not in _KNOWN]
    if unknown:
        return f"its pictures come with {', '.join(unknown)}, which the self-test cannot make up"
    reasons: list[str] = []
    for form in forms(model.config, list(parameters)):
        try:
            with torch.no_grad():
                features = encode(**noise(form, 0), return_dict=True).pooler_output
            lengths = tuple(int(item.shape[:-1].numel()) for item in features)
        except Exception as cause:  # whatever a model makes of a picture in another family's form
            shape = tuple(form["pixel_values"])
            reasons.append(f"{type(cause).__name__} at pixel_values {shape}: {str(cause).strip().splitlines()[:1]}")
            continue
        if sum(lengths) > 1:
            return Maker(form, lengths, token, _around(model.config), _kinds(model, entry))
    return f"it takes pictures in no form that the self-test can make up ({'; '.join(reasons)})"


def noise(form: Form, seed: int) -> dict[str, Tensor]:
    """One picture of noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: torch.tensor(value) if isinstance(value, list) else _filled(name, value, generator)
        for name, value in form.items()
    }


def _filled(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("mask"):
        return torch.ones(shape, dtype=torch.long)
    return torch.rand(shape, generator=generator) * 2 - 1


def forms(config: Any, names: Sequence[str]) -> Iterator[Form]:
    """The usual forms of one picture, for a model whose ``get_image_features`` has parameters of these names."""
    vision: Any = getattr(config, "vision_config", None)
    patch = _first(getattr(vision, "patch_size", None) or 14)
    channels = int(getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3)
    rows, cols = _GRID
    if "image_grid_thw" in names:
        grid = [[1, rows, cols]]
        for depth in dict.fromkeys((int(getattr(vision, "temporal_patch_size", None) or 1), 2, 1)):
            yield {"pixel_values": (rows * cols, channels * depth * patch * patch), "image_grid_thw": grid}
        yield {"pixel_values": (rows * cols, channels, patch, patch), "image_grid_thw": grid}
    if "spatial_shapes" in names:
        yield {
            "pixel_values": (1, rows * cols, channels * patch * patch),
            "pixel_attention_mask": (1, rows * cols),
            "spatial_shapes": [[rows, cols]],
        }
    height, width = picture_size(config) or (_SIDE, _SIDE)
    if "image_sizes" in names:
        merge = int(getattr(config, "spatial_merge_size", None) or 1)
        high, wide = 2 * merge * patch, 3 * merge * patch
        yield {"pixel_values": (1, channels, high, wide), "image_sizes": [[high, wide]]}
        for pieces in (1, 2, 3, 4, 5):  # a thumbnail and tiles
            sizes = [[height, width]]
            yield {"pixel_values": (1, pieces, channels, height, width), "image_sizes": sizes}
    yield {"pixel_values": (1, channels, height, width)}
    yield {"pixel_values": (1, 1, channels, height, width)}


def _first(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size[0])


def _around(config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the family writes around a picture, where its config names it."""

    def first_of(*names: str) -> tuple[int, ...]:
        values = [getattr(config, name, None) for name in names]
        return next(((value,) for value in values if isinstance(value, int)), ())

    left = first_of("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
    right = first_of("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
    return left, right


def _kinds(model: Any, entry: nn.Module) -> str | None:
    """The input by which a model is told what is a picture: 1 there, 0 at text."""
    takes = {*inspect.signature(entry.forward).parameters, *inspect.signature(model.forward).parameters}
    return next((name for name in ("mm_token_type_ids", "token_type_ids") if name in takes), None)
