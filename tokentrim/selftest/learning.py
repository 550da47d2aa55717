"""What a model makes of pictures, learnt from its own processor and from a forward of its tower without weights.

For families whose arithmetic no adapter knows. A picture is shown to the processor, which says how many tokens it
becomes; the tower, built without weights, says in which pieces, and what it computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from PIL import Image

from tokentrim.contracts.adapter import Adapter, Encoding, Layout
from tokentrim.counting.shape import ModelShape, VisionShape
from tokentrim.counting.tilings import NOMINAL_SIZE, Cut, Tiling
from tokentrim.errors import UnsupportedError, complaint, reason_of
from tokentrim.loading import describe, load_processor, prompt_inputs
from tokentrim.selftest.running import model_class_of, placeholder
from tokentrim.selftest.weightless import counted, encoder_arguments, weightless

_OTHER_SIZE: Final = (224, 504)
"""Another size than the nominal one, and of another shape, to see whether sizes matter."""


def learnt(model: str | Path, shape: ModelShape) -> ModelShape:
    """The shape of a model with what pictures become, which the adapter of its family may not know.

    Args:
        model: a name, a folder, or an id of the hub.
        shape: its numbers as its config has them; returned as they are where they say what pictures become.

    Raises:
        UnsupportedError: when the processor writes no placeholders for a picture.
        TokentrimError: as :func:`tokentrim.loading.load_processor`.
    """
    if shape.vision is not None:
        return shape
    name = str(model)
    varies = _cut(name, *NOMINAL_SIZE, 1).n_visual != _cut(name, *_OTHER_SIZE, 1).n_visual
    tiling = Learnt(name) if varies else LearntOnce(name)
    return replace(shape, vision=VisionShape(0, 0, 0, tiling=tiling).for_image(*NOMINAL_SIZE))


@dataclass(frozen=True)
class Learnt(Tiling):
    """What a model's processor and tower make of an image of each size.

    Attributes:
        model: name or folder of the model.
    """

    model: str

    asks: ClassVar[bool] = True

    def cut(self, height: int, width: int, images: int = 1) -> Cut:
        """What the processor makes of such an image; the grid where the adapter can tell it."""
        return _cut(self.model, height, width, images)

    def flops(self, height: int, width: int, images: int = 1) -> int | None:
        """What a forward of the tower without weights computes for one image."""
        found = _counted(self.model, height, width, images)
        return found if isinstance(found, int) else None

    def uncounted(self, height: int, width: int, images: int = 1) -> str:
        """Why that forward could not be made."""
        found = _counted(self.model, height, width, images)
        return found if isinstance(found, str) else ""


class LearntOnce(Learnt):
    """The same where every image becomes as many tokens."""

    varies: ClassVar[bool] = False


class _Tower(NamedTuple):
    """A model without weights, and where its modules are."""

    adapter: Adapter
    layout: Layout


@lru_cache(maxsize=4)
def _tower(model: str) -> _Tower | str:
    """The model without weights, or why there is none."""
    described = describe(model)
    try:
        copy = weightless(model_class_of(described.config), described.config)
        return _Tower(described.adapter, described.adapter.locate(copy))
    except Exception as cause:  # each family has its own reasons
        return reason_of(cause)


@lru_cache(maxsize=4)
def reader(model: str) -> tuple[Any, int]:
    """A model's processor, and the id of its placeholder."""
    described = describe(model)
    return load_processor(described.folder), placeholder(described.config)


def _inputs(model: str, height: int, width: int, images: int) -> tuple[dict[str, Any], int]:
    """What the processor makes of ``images`` pictures of one size, and the placeholders that it writes for them."""
    Tiling.require_size(height, width)
    processor, token = reader(model)
    # Plain pictures may pass for padding.
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    inputs = dict(prompt_inputs(processor, ["?"], [[picture] * images]))
    n = int((inputs["input_ids"] == token).sum())
    if not n:
        raise UnsupportedError(
            complaint(f"the processor of model {model!r}", "write placeholders for a picture", 0,
                      f"it must write the token {token}, which the model's config names")
        )  # fmt: skip
    return inputs, n


@lru_cache(maxsize=4096)
def _cut(model: str, height: int, width: int, images: int) -> Cut:
    """See :meth:`Learnt.cut`; one image stands for all of its prompt."""
    inputs, total = _inputs(model, height, width, images)
    n = math.ceil(total / images)
    rows, cols = _grid(model, inputs, n) if images == 1 else (0, 0)
    shown = f" in {rows} x {cols}" if rows else ""
    note = f"{height}x{width} pixels become {n} visual tokens{shown}, as the model's own processor has it"
    return Cut(pieces=1, tokens=0, n_visual=n, n_structure=0, rows=rows, cols=cols, projected=n, note=note)


def _grid(model: str, inputs: dict[str, Any], n: int) -> tuple[int, int]:
    """Rows and columns of the one plane that a picture becomes; zeros where it is not one plane, or nothing tells."""
    tower = _tower(model)
    if isinstance(tower, str):
        return 0, 0
    entry: Any = tower.layout.entry
    arguments = encoder_arguments(entry.get_image_features, inputs)
    if "image_grid_thw" not in arguments and _pieces(arguments.get("pixel_values")) != 1:
        return 0, 0
    try:
        places = tower.adapter.places(tower.layout, Encoding("image", arguments, (n,)), 0)
    except Exception:  # an adapter may want to know more than one call of the processor tells
        return 0, 0
    rows, cols = int(places.rows.max()), int(places.cols.max())
    return (rows, cols) if rows * cols == n else (0, 0)


def _pieces(pixels: Any) -> int:
    """Pieces of pictures that are encoded on their own: [pieces, C, H, W], [rows, pieces, C, H, W], [pieces, n, d]."""
    lead = {3: 1, 4: 1, 5: 2}.get(0 if pixels is None else pixels.dim(), 0)
    return math.prod(pixels.shape[:lead]) if pixels is not None and lead else 1


@lru_cache(maxsize=256)
def _counted(model: str, height: int, width: int, images: int) -> int | str:
    """FLOPs of the tower and the projector for one of ``images`` pictures, or why they cannot be counted."""
    tower = _tower(model)
    if isinstance(tower, str):
        return tower
    inputs, _ = _inputs(model, height, width, images)
    entry: Any = tower.layout.entry
    try:
        found = counted(entry.get_image_features, encoder_arguments(entry.get_image_features, inputs))
    except Exception as cause:  # whatever a tower does that shapes cannot follow
        return reason_of(cause)
    return round(found.flops / images) or "nothing of it is a matrix product"
