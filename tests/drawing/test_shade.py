"""Fading of dropped patches."""

import numpy as np
from PIL import Image

from tokentrim.drawing.shade import shade


def test_kept_patches_keep_their_pixels_and_others_fade():
    image = Image.fromarray(np.full((20, 20, 3), (10, 200, 30), dtype=np.uint8))
    found = shade(image, [0, 3], 2, 2, size=40)
    assert found.shape == (40, 40, 3)
    assert (found[:20, :20] == (10, 200, 30)).all()
    assert (found[20:, 20:] == (10, 200, 30)).all()
    faded = found[:20, 20:]
    assert (faded == faded[0, 0, 0]).all()
    assert faded[0, 0, 0] == int(80 * 0.14 + 205 * 0.86)


def test_tokens_outside_the_grid_are_ignored():
    image = Image.new("RGB", (8, 8))
    assert (shade(image, [-1, 99], 2, 2, size=8) > 170).all()


def test_what_is_gone_of_a_white_page_is_seen():
    found = shade(Image.new("RGB", (8, 8), "white"), [0], 1, 2, size=8)
    assert found[0, 0, 0] - found[0, -1, 0] > 30
