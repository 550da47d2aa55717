"""``tokentrim plan``: what a strategy will cost, before any weight is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, quiet_libraries
from tokentrim.counting.forecast import HEADER, NEW_TOKENS, TEXT_TOKENS, Plan, plan as make_plan
from tokentrim.counting.tilings import NOMINAL_SIZE
from tokentrim.errors import ConfigError, complaint

if TYPE_CHECKING:
    from rich.table import Table

    from tokentrim.counting.shape import VisionShape

_SIZE = re.compile(r"\s*(\d+)\s*[xX]\s*(\d+)\s*")


def plan(
    strategy: options.Strategy = None,
    model: Annotated[
        str, typer.Option(help="A preset such as llava-1.5-7b, a registered model, a folder, or an id of the hub.")
    ] = "testbed",
    text_tokens: Annotated[int, typer.Option(help="Tokens of the prompt that are not visual.")] = TEXT_TOKENS,
    image_size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the image, in pixels.")] = None,
    images: Annotated[int, typer.Option(help="Images in the prompt.", min=0)] = 1,
    structure: options.Structure = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = NEW_TOKENS,
    as_json: options.AsJson = False,
) -> None:
    """Tokens per layer, FLOPs and KV bytes of a strategy on one prompt, from shapes alone."""
    if strategy is None:
        raise ConfigError(
            complaint("--strategy", "be given", hint="such as --strategy st3; see 'tokentrim ls strategy'")
        )
    from tokentrim.config.specs import strategy_from
    from tokentrim.loading import shape_of

    spec = strategy_from(strategy)
    structure = structure or spec.structure or "keep"
    if structure not in ("keep", "prune"):
        raise ConfigError(complaint("--structure", "be keep or prune", structure))
    shape = shape_of(model)
    if shape.vision is None:  # needs torch
        from tokentrim.selftest.learning import learnt

        quiet_libraries()
        shape = learnt(model, shape)
    size = NOMINAL_SIZE if image_size is None else _size(image_size)
    vision = cast("VisionShape", shape.vision).for_image(*size, images=max(1, images))
    if structure == "prune":
        vision = vision.with_structure_visual()
    shape = replace(shape, vision=vision)
    n_visual, n_text = images * vision.n_visual, text_tokens + images * vision.n_structure
    chosen = spec.strategy
    if spec.budget is not None:
        chosen, _ = chosen.at_budget(shape, n_visual, **spec.budget.ratios, n_text=n_text, new_tokens=new_tokens)
    made = make_plan(chosen, shape, n_visual, n_text, new_tokens)
    notes = _notes(vision, size, images, named=image_size is not None)
    if shape.uncounted and images:
        notes.append(f"the vision tower is not counted: {shape.uncounted}")
    if as_json:
        per_image = {"size": list(size), "visual_tokens": vision.n_visual, "structure": vision.n_structure,
                     "pieces": vision.pieces, "rows": vision.rows, "cols": vision.cols}  # fmt: skip
        data = made.to_dict()
        if shape.uncounted and images:
            data["prefill_flops_whole"] = None
        emit({**data, "image": per_image, "notes": [*data["notes"], *notes]})
        return
    out = console()
    out.print(plan_table(made))
    for note in notes:
        out.print(f"note: {note}", style="dim")


def _notes(vision: VisionShape, size: tuple[int, int], images: int, *, named: bool) -> list[str]:
    """What becomes of an image of this size, where its size was named or matters."""
    if vision.tiling is None or not (named or vision.varies):
        return []
    notes = [] if named else [f"the size of an image matters here: planned for {size[0]}x{size[1]}, see --image-size"]
    notes.append(vision.tiling.cut(*size, images=max(1, images)).note)
    if vision.n_structure and images:
        notes.append(f"{images * vision.n_structure} line ends are counted among the text tokens, and always stay")
    return notes


def _size(text: str) -> tuple[int, int]:
    """Height and width.

    Raises:
        ConfigError: when the text is no size.
    """
    found = _SIZE.fullmatch(text)
    if found is None or not (int(found[1]) and int(found[2])):
        raise ConfigError(complaint("--image-size", "read HEIGHTxWIDTH in pixels", text, "such as 336x336"))
    return int(found[1]), int(found[2])


def plan_table(made: Plan) -> Table:
    """The plan for a terminal: runs of equal layers, then the totals against the unpruned run."""
    from rich.table import Table  # only a terminal needs it

    table = Table(title=made.title, caption="; ".join(made.notes) or None)
    for name in HEADER:
        table.add_column(name, justify="left" if name == HEADER[0] else "right")
    by_layer, totals = made.lines()
    for line in by_layer:
        table.add_row(*line)
    table.add_section()
    for line in totals:
        table.add_row(*line)
    return table
