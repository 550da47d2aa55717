"""The testbed's LLaVA-NeXT: tiles of 40 x 40 pixels, cut by transformers' own rules, beside the whole picture.

The whole picture shrunk to one tile gives 25 coarse tokens; the tiles give fine ones of 8 pixels, row by row over
the picture, with the margins that padding added cut off again and an end-of-line token behind each row. A tile knows
only where in itself a token lies: which tile it is, the language model reads from the sequence.
"""

from functools import cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.image_processing_utils import select_best_resolution

from tokentrim.testbed.scenes import PATCH, SQUARE, Canvas, Floats
from tokentrim.testbed.training.family import Encoded, TestbedFamily
from tokentrim.testbed.training.model import PIXEL_MEAN, PIXEL_STD, VISION_WIDTH, build_config as llava_config
from tokentrim.testbed.training.view import View, raster_boxes
from tokentrim.testbed.vocabulary import BEGIN, IDS, USER

TILE: Final = 40  # pixels
SIDE: Final = TILE // PATCH  # tokens in a row of a tile
PINPOINTS: Final = [[40, 80], [80, 40], [80, 80]]


def build_config(layers: int) -> LlavaNextConfig:
    """Configuration with the given number of language-model layers."""
    plain: Any = llava_config(layers)
    eyes: dict[str, Any] = {**plain.vision_config.to_dict(), "image_size": TILE}
    vision = CLIPVisionConfig(**eyes)
    return LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(**plain.text_config.to_dict()),
        image_token_index=plain.image_token_index,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )


class Next(TestbedFamily):
    """LLaVA-NeXT: a coarse plane, a fine plane out of tiles, ends of lines."""

    name = "llava-next"
    tower = "vision_tower"
    feature_width = VISION_WIDTH
    sees_place = False
    # Borders of tiles fall between cells, so that no object is cut. The last two are padded, and unpadded again.
    canvases = (
        SQUARE,
        Canvas(40, 80, rows=2),
        Canvas(80, 40, columns=2),
        Canvas(64, 80, cell_height=16),
        Canvas(80, 64, cell_width=16),
    )

    def build(self, layers: int) -> Any:
        """A LLaVA-NeXT with so many decoder layers."""
        return LlavaNextForConditionalGeneration(build_config(layers))

    def view(self, canvas: Canvas) -> View:
        """Coarse tokens, then fine ones and an end of line in each row."""
        return _view(canvas)

    def pixels(self, pictures: NDArray[np.uint8], view: View) -> Tensor:
        """Tiles [batch, tiles, 3, 40, 40], the shrunk picture first."""
        whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        base = F.interpolate(whole.float(), (TILE, TILE), mode="bicubic", antialias=True).round().clamp(0, 255)
        height, width = select_best_resolution((view.canvas.height, view.canvas.width), PINPOINTS)
        top, left = (height - view.canvas.height) // 2, (width - view.canvas.width) // 2
        padded = F.pad(whole.float(), (left, width - view.canvas.width - left, top, height - view.canvas.height - top))
        tiles = padded.unfold(2, TILE, TILE).unfold(3, TILE, TILE).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        return (torch.cat([base[:, None], tiles], 1) / 255 - PIXEL_MEAN) / PIXEL_STD

    def encode(self, model: Any, pixels: Tensor, view: View) -> Encoded:
        """Features of all tiles in one pass, put in their order by a gather."""
        batch, tiles = pixels.shape[:2]
        output = model.model.vision_tower(pixels.flatten(0, 1), output_hidden_states=True)
        features = output.hidden_states[-2][:, 1:].reshape(batch, tiles * SIDE * SIDE, -1)
        source = torch.from_numpy(_layout(view.canvas)[0])
        line = source < 0
        features = features[:, source.clamp(min=0)] * ~line[:, None]
        visual = torch.where(line[:, None], model.model.image_newline, model.model.multi_modal_projector(features))
        return Encoded(visual, features, output.pooler_output.view(batch, tiles, -1))


@cache
def _layout(canvas: Canvas) -> tuple[NDArray[np.int64], Floats]:
    """Where each visual token comes from, tile by tile [tokens], -1 for ends of lines; its box [tokens, 4]."""
    height, width = select_best_resolution((canvas.height, canvas.width), PINPOINTS)
    rows, columns = height // PATCH, width // PATCH
    row, column = np.divmod(np.arange(rows * columns), columns)
    tile = 1 + row // SIDE * (width // TILE) + column // SIDE
    source = (tile * SIDE * SIDE + row % SIDE * SIDE + column % SIDE).reshape(rows, columns)
    top, left = (height - canvas.height) // 2, (width - canvas.width) // 2
    boxes = raster_boxes(rows, columns, PATCH, PATCH, -top, -left).reshape(rows, columns, 4)
    cut = (slice(top // PATCH, rows - top // PATCH), slice(left // PATCH, columns - left // PATCH))
    source = np.pad(source[cut], ((0, 0), (0, 1)), constant_values=-1)
    boxes = np.pad(boxes[cut], ((0, 0), (0, 1), (0, 0)))
    base = raster_boxes(SIDE, SIDE, canvas.height / SIDE, canvas.width / SIDE)
    return np.concatenate([np.arange(SIDE * SIDE), source.ravel()]), np.concatenate([base, boxes.reshape(-1, 4)])


@cache
def _view(canvas: Canvas) -> View:
    source, boxes = _layout(canvas)
    start = (IDS[BEGIN], IDS[USER])
    return View(
        canvas=canvas,
        boxes=boxes,
        plane=((source < 0) | (source >= SIDE * SIDE)).astype(np.int64),
        structure=source < 0,
        tile=np.maximum(source, 0) // (SIDE * SIDE),
        start=start,
        end=(),
        prefix=torch.arange(len(start) + len(source))[None],
    )


NEXT = Next()
