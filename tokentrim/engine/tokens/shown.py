"""What traces look like in a notebook: what every stage kept, on the picture where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tokentrim.contracts.token_places import IN_ORDER, Cells
from tokentrim.drawing.notebook import folded, kept_patches, notes, table

if TYPE_CHECKING:
    from PIL import Image

    from tokentrim.engine.tokens.trace import Trace

_PLANES: Final = 12  # pictures, tiles and frames that a stage shows
_ROWS: Final = 8


def stages_of(trace: Trace, row: int = 0) -> list[tuple[int | None, list[int]]]:
    """What a row kept, wherever it changes: (first layer, tokens) at prefill, and where fewer were seen as the answer
    grew, (None, what the last layer saw at the end); ``trace.evicts`` says whether the others had left the cache.
    """
    found: list[tuple[int | None, list[int]]] = []
    for first, _ in trace.prefill:
        kept: list[int] = trace.kept(first, row).tolist()
        if not found or found[-1][1] != kept:
            found.append((first, kept))
    if trace.evictions and trace.steps:
        found.append((None, trace.cached(trace.n_layers - 1, trace.steps, row).tolist()))
    return found


def _named(trace: Trace, row: int = 0) -> list[tuple[str, list[int]]]:
    """The same, each by its name."""
    end = f"seen in the last layer at the end, step {trace.steps}"
    return [(end if first is None else f"from layer {first}", kept) for first, kept in stages_of(trace, row)]


def trace_html(trace: Trace) -> str:
    """A table of what each sample kept; the places are the session's to know."""
    lines: list[tuple[str, ...]] = []
    for row, n_visual in enumerate(trace.n_visual[:_ROWS]):
        shares = (f"{where}: {len(kept)}" for where, kept in _named(trace, row))
        lines.append((f"sample {row}", str(n_visual), "; ".join(shares) or "a guide answered"))
    title = f"trace: {len(trace.n_visual)} samples, {trace.n_layers} layers, {trace.steps} decode forwards"
    left = len(trace.n_visual) - _ROWS
    return table(("", "visual tokens", "kept"), lines, title) + notes([f"and {left} more"] if left > 0 else [])


def kept_html(trace: Trace, where: Cells | str, images: Sequence[Image.Image]) -> str:
    """A fold per stage of a prompt's first sample: on its pictures, or in order, with the reason, where none knows."""
    total = trace.n_visual[0]
    cells = Cells.in_order(total) if isinstance(where, str) else where
    stages, drawn = _named(trace), list(cells.planes)[:_PLANES]
    shown = isinstance(where, Cells) and len(images) > max((plane.image for plane in cells.planes), default=-1)
    said = [f"the first of {len(trace.n_visual)} samples"] if len(trace.n_visual) > 1 else []
    if len(cells.planes) > _PLANES:
        said.append(f"{_PLANES} of {len(cells.planes)} pictures, tiles and frames are drawn")
    if isinstance(where, str):
        said.append(f"{IN_ORDER}: {where}")
    elif not shown:
        said.append("squares for patches: session.annotate(images=[...]) says what pictures the latest prompt had")
    found = [
        (
            f"{stage}: {len(kept)} of {total} visual tokens",
            [
                kept_patches(images[plane.image] if shown else None, cells.inside(number, kept), plane.rows, plane.cols)
                for number, plane in enumerate(drawn)
            ],
        )
        for stage, kept in stages
    ]
    return folded(found, f"tokentrim-{id(trace)}") + notes(said)
