"""Pictures of kept tokens: on the prompt's pictures, or in order on a plain ground, which says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from PIL import Image

from tokentrim.cli.overlay import write_overlay
from tokentrim.contracts.token_places import IN_ORDER, Cells
from tokentrim.runs.drawn_on import canvas_of


def session(places: Cells | str) -> Any:
    return SimpleNamespace(placed=lambda n_images: places, trace=SimpleNamespace(n_visual=[5]))


def test_tokens_are_drawn_on_the_pictures_where_their_places_are_known():
    image = Image.new("RGB", (20, 20), "red")
    canvas = canvas_of(session(Cells.in_order(4)), [image])
    assert (canvas.images, canvas.note) == ([image], "")


def test_other_tokens_are_drawn_in_order_and_the_picture_says_so(tmp_path):
    canvas = canvas_of(session("nobody knows"), [Image.new("RGB", (20, 20), "red")])
    assert canvas.note == f"{IN_ORDER}: nobody knows"
    assert len(canvas.cells.place) == 5
    heights: list[int] = []
    for name, note, called in (("bare.png", "", ""), ("noted.png", IN_ORDER, ""), ("named.png", IN_ORDER, "image 1")):
        write_overlay(
            tmp_path / name, canvas.images, [(0, [0, 1, 2, 3, 4]), (2, [3])], canvas.cells, note=note, names=[called]
        )
        with Image.open(tmp_path / name) as drawn:
            assert (255, 0, 0) not in {color for _, color in drawn.convert("RGB").getcolors(1 << 20)}
            heights.append(drawn.height)
    assert heights == sorted(set(heights))
