"""SmolVLM and Idefics3: tiles and a thumbnail, told apart by tags in the prompt's text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokentrim import (
    NOMINAL_SIZE,
    Cut,
    Encoding,
    Layout,
    ModelShape,
    Need,
    Places,
    VisionShape,
    decoder_shape,
    submodule,
)
from tokentrim_adapters import _pieces

_GAP = 2  # text tokens between neighbouring tiles of a row: the mark of a picture's edge, and the tag of the tile
_LONGEST = 4096  # pixels of the longest side, whatever the settings say


class SmolVLMAdapter(_pieces.PiecesAdapter):
    r"""``SmolVLM-`` and ``Idefics3ForConditionalGeneration``: SigLIP tower, pixel shuffle, Llama decoder.

    An image is scaled to a long side of several tiles and cut into them; a thumbnail of the whole comes last. Every
    piece has the same number of tokens, and a tag of text in front of it; a line feed follows each row of tiles. The
    model is not told how an image was cut, the text tells: the last piece of a prompt is a thumbnail, so its tag is
    the thumbnail's, and where more text than an edge and a tag lies between two tiles, a row ends. Pieces that are not
    tagged so are images of their own. Tags, edges and line feeds are text, and stay. The frames of a video are images.

    ```bibtex
    @misc{marafioti2025smolvlm,
      title={{SmolVLM}: Redefining small and efficient multimodal models},
      author={Marafioti, Andr{\'e}s and Zohar, Orr and Farr{\'e}, Miquel and Noyan, Merve and Bakouch, Elie and
              others},
      year={2025},
      note={arXiv:2504.05299},
      keywords={smolvlm}
    }
    @misc{laurencon2024idefics3,
      title={Building and better understanding vision-language models: insights and future directions},
      author={Lauren{\c{c}}on, Hugo and Marafioti, Andr{\'e}s and Sanh, Victor and Tronchon, L{\'e}o},
      year={2024},
      note={arXiv:2408.12637},
      keywords={idefics3}
    }
    ```
    """

    name: ClassVar[str] = "smolvlm"
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    decoders: ClassVar[tuple[str, ...]] = ("llama",)

    def locate(self, model: nn.Module) -> Layout:
        """Find entry, decoder and vision modules."""
        whose = type(model).__name__
        entry = submodule(model, "model", whose) if hasattr(model, "lm_head") else model
        language = submodule(entry, "text_model", whose)
        tower = submodule(entry, "vision_model", whose)
        blocks = submodule(submodule(tower, "encoder", "the vision tower"), "layers", "its encoder").children()
        config: Any = entry.config
        return Layout.around(
            entry,
            language,
            vision_attentions=tuple(submodule(block, "self_attn", "a vision block") for block in blocks),
            vision_config=tower.config,
            has_cls=False,
            shape=self.shape(config, bytes_per_element=next(language.parameters()).element_size()),
            projector=submodule(submodule(entry, "connector", whose), "modality_projection", "the connector"),
            unserved={
                Need.TOWER_GROUPS: "its connector joins patches of a square grid that merging tokens would break"
            },
        )

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs, for an image of nominal size cut as by default."""
        text, vision = config.text_config, config.vision_config
        tower = VisionShape(
            n_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            merge=config.scale_factor,
            projector_weights=vision.hidden_size * config.scale_factor**2 * text.hidden_size,
            tiling=SplitImage(vision.image_size, vision.image_size // vision.patch_size, config.scale_factor),
        )
        return decoder_shape(
            config,
            text,
            name=name,
            bytes_per_element=bytes_per_element,
            dtype=torch.bfloat16,
            vision=tower.for_image(*NOMINAL_SIZE),
        )

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """With the long side that the image processor scales to, and whether it cuts."""
        vision = shape.vision
        if vision is None or not isinstance(vision.tiling, SplitImage):
            return shape
        size: Any = settings.get("size")
        longest = (size if isinstance(size, Mapping) else {}).get("longest_edge") or vision.tiling.longest
        cuts = bool(settings.get("do_image_splitting", vision.tiling.cuts))
        changed = replace(vision, tiling=replace(vision.tiling, longest=longest, cuts=cuts))
        return replace(shape, vision=changed.for_image(*NOMINAL_SIZE))

    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """One plane per piece: which of them are one image, the text alone tells (see :meth:`pictures`)."""
        side = _pieces.tiling_of(layout).tokens
        return Places.raster(side, side, frames=encoding.lengths[item] // side**2)

    def pictures(self, layout: Layout, encoding: Encoding, prompts: Sequence[Tensor]) -> list[Places]:
        """Tiles and thumbnail of each image, by the text around its pieces."""
        config: Any = layout.entry.config
        side = _pieces.tiling_of(layout).tokens
        grids = [grid for prompt in prompts for grid in _grids(prompt, config.image_token_id, side**2)]
        return [_pieces.cut_up(rows, cols, side) for rows, cols in grids]

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """A row's own pieces, without the black ones that pad a batch."""
        given = encoding.argument("pixel_values")
        own = given[item] if len(given) == len(encoding.lengths) else given.flatten(0, 1)
        return own[: max(1, encoding.lengths[item] // _pieces.tiling_of(layout).tokens ** 2)]


@dataclass(frozen=True)
class SplitImage(_pieces.CutUp):
    """Every image is scaled to one long side, then to whole tiles, and cut; a thumbnail comes last.

    Attributes:
        longest: pixels of the long side; 0 = four tiles.
        cuts: whether images are cut; else each is one piece.
    """

    longest: int = 0
    cuts: bool = True

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles; (0, 0) for an image of one piece."""
        if not self.cuts:
            return 0, 0
        longest, ratio = self.longest or 4 * self.pixels, width / height
        if width >= height:
            height, width = _even(int(longest / ratio)), longest
            if width > _LONGEST:
                height, width = max(1, int(_LONGEST / (width / height))), _LONGEST
        else:
            height, width = longest, _even(int(longest * ratio))
            if height > _LONGEST:
                height, width = _LONGEST, max(1, int(_LONGEST * (width / height)))
        ratio = width / height
        if width >= height:
            cols = math.ceil(width / self.pixels)
            rows = math.ceil(int(cols * self.pixels / ratio) / self.pixels)
        else:
            rows = math.ceil(height / self.pixels)
            cols = math.ceil(int(rows * self.pixels * ratio) / self.pixels)
        return (rows, cols) if rows * cols > 1 else (0, 0)

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """Tiles and a thumbnail, or one piece."""
        self.require_size(height, width)
        rows, cols = self.grid(height, width)
        how = f"cut into {rows}x{cols} tiles and a thumbnail" if rows else "one piece"
        return self.cut_into(rows, cols, f"{height}x{width}", how)


def _even(pixels: int) -> int:
    return max(1, pixels + pixels % 2)


def _grids(prompt: Tensor, placeholder: int, length: int) -> list[tuple[int, int]]:
    """Rows and columns of tiles of each image of a prompt, in order; (0, 0) for an image of one piece.

    Args:
        prompt: int64 [T].
        placeholder: the id of an image's placeholder.
        length: placeholders of a piece.
    """
    runs = _pieces.runs(prompt, placeholder)
    ids = [-1, -1, *prompt.tolist(), -1]  # what stands around a run at either end of the prompt
    if not runs:
        return []
    edge, thumbnail = ids[runs[-1][1] + 2], ids[runs[-1][0] + 1]
    found: list[tuple[int, int]] = []
    rows: list[int] = []  # tiles of each row of the image so far
    before = -1
    for start, end in runs:
        tagged = end - start == length and ids[start] == edge
        if not tagged or ids[start + 1] == thumbnail:
            whole = tagged and len(set(rows)) == 1
            found += [(len(rows), rows[0])] if whole else [(0, 0)] * (sum(rows) + (end - start) // length)
            rows = []
        elif rows and start - before == _GAP:
            rows[-1] += 1
        else:
            rows.append(1)
        before = end
    return found
