import numpy as np
import pytest
from hypothesis import given, strategies as st

from tokentrim.testbed.scenes import (
    CELL,
    CELLS,
    GLYPH,
    GLYPH_MASKS,
    IMAGE_SIZE,
    PATCH,
    SQUARE,
    Canvas,
    draw_scenes,
    render,
)
from tokentrim.testbed.training.view import SQUARE_VIEW, fine_centre, overlap
from tokentrim.testbed.vocabulary import GLYPHS

seeds = st.integers(0, 2**32 - 1)


def test_same_seed_same_pictures():
    first, second = (render(rng, draw_scenes(rng, 4, 4, 10)) for rng in map(np.random.default_rng, (3, 3)))
    assert first.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


def test_other_seed_other_pictures():
    first, second = (render(rng, draw_scenes(rng, 4, 4, 10)) for rng in map(np.random.default_rng, (3, 4)))
    assert (first != second).any()


@given(seeds, st.integers(0, 10), st.integers(1, 10))
def test_objects_lie_in_their_cells(seed, fewest, most):
    fewest = min(fewest, most)
    scenes = draw_scenes(np.random.default_rng(seed), 3, fewest, most)
    for index in range(3):
        objects = scenes.scene(index).objects
        assert fewest <= len(objects) == scenes.count[index] <= most
        cells = [(o.row, o.column) for o in objects]
        assert cells == sorted(set(cells)), "one object per cell, in reading order"
        for o in objects:
            assert o.row * CELL <= o.top < o.bottom <= (o.row + 1) * CELL
            assert o.column * CELL <= o.left < o.right <= (o.column + 1) * CELL
            assert o.bottom - o.top == o.right - o.left == GLYPH


def test_glyphs_differ_and_fit():
    assert GLYPH_MASKS.shape == (len(GLYPHS), GLYPH, GLYPH)
    assert len({mask.tobytes() for mask in GLYPH_MASKS}) == len(GLYPHS)


def test_objects_are_painted_in_their_colour():
    rng = np.random.default_rng(0)
    scenes = draw_scenes(rng, 8, 4, 10)
    pictures = render(rng, scenes).astype(float)
    for index in range(8):
        for o in scenes.scene(index).objects:
            pixels = pictures[index, o.top : o.bottom, o.left : o.right]
            painted = pixels[GLYPH_MASKS[GLYPHS.index(o.glyph)]].mean(0)
            strongest = {"red": {0}, "green": {1}, "blue": {2}, "yellow": {0, 1}, "purple": {0, 2}, "cyan": {1, 2}}
            for channel in range(3):
                assert (painted[channel] > 140) == (channel in strongest[o.color])


@given(seeds)
def test_tokens_of_objects(seed):
    scenes = draw_scenes(np.random.default_rng(seed), 2, 1, 10)
    touched, centre = overlap(scenes, SQUARE_VIEW), fine_centre(scenes, SQUARE_VIEW)
    np.testing.assert_array_equal(touched.sum(2), scenes.present * GLYPH**2)
    for index, slot in zip(*np.nonzero(scenes.present), strict=True):
        row, column = divmod(int(centre[index, slot]), IMAGE_SIZE // PATCH)
        assert row * PATCH <= scenes.top[index, slot] + GLYPH // 2 < (row + 1) * PATCH
        assert column * PATCH <= scenes.left[index, slot] + GLYPH // 2 < (column + 1) * PATCH
        assert touched[index, slot, centre[index, slot]] > 0


def test_more_objects_than_cells_is_impossible():
    with pytest.raises(ValueError):
        draw_scenes(np.random.default_rng(0), 1, CELLS**2 + 2, CELLS**2 + 1)


@given(seeds, st.sampled_from([Canvas(40, 80, rows=2), Canvas(64, 80, cell_height=16), Canvas(80, 112), SQUARE]))
def test_objects_lie_on_their_canvas(seed, canvas):
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(rng, 2, 1, canvas.most, canvas)
    assert render(rng, scenes).shape == (2, canvas.height, canvas.width, 3)
    for index in range(2):
        scene = scenes.scene(index)
        assert scene.canvas == canvas
        cells = {(o.row, o.column) for o in scene.objects}
        assert len(scene.objects) == len(cells) < canvas.rows * canvas.columns, "a cell stays empty"
        for o in scene.objects:
            assert o.row < canvas.rows
            assert o.column < canvas.columns
            assert o.row * canvas.cell_height <= o.top < o.bottom <= (o.row + 1) * canvas.cell_height
            assert o.column * canvas.cell_width <= o.left < o.right <= (o.column + 1) * canvas.cell_width
