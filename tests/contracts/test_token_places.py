"""Cells as what draws them wants them: every frame of a video a picture of its own."""

from PIL import Image

from tokentrim.contracts.token_places import Cells, Plane
from tokentrim.reading import Video


def frames(*greys):
    return tuple(Image.new("RGB", (2, 2), (grey,) * 3) for grey in greys)


def drawn(planes, images, videos):
    cells, pictures = Cells(tuple(Plane(*plane, 0, 1, 1) for plane in planes), (), ()).drawn(images, videos)
    return [(plane.image, plane.frame) for plane in cells.planes], [picture.tobytes()[0] for picture in pictures]


def test_of_frames_that_are_merged_the_first_is_drawn_behind_the_images():
    planes = [(0, 0), (1, 0), (1, 1), (2, 0)]
    found = drawn(planes, frames(9), [Video(frames(1, 2, 3, 4)), Video(frames(5, 6))])
    assert found == ([(0, 0), (1, 0), (2, 0), (3, 0)], [9, 1, 3, 5])


def test_frames_may_be_images_to_a_model():
    assert drawn([(0, 0), (1, 0), (2, 0)], (), [Video(frames(1, 2, 3))])[1] == [1, 2, 3]


def test_images_are_drawn_as_they_are():
    assert drawn([(0, 0), (1, 0)], frames(1, 2), []) == ([(0, 0), (1, 0)], [1, 2])
