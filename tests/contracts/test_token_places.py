"""Cells as what draws them wants them: every frame of a video a picture of its own."""

from PIL import Image

from tokentrim.contracts.token_places import Cells, Plane
from tokentrim.reading import Video


def frames(*greys):
    return tuple(Image.new("RGB", (2, 2), (grey,) * 3) for grey in greys)


def drawn(planes, images, videos):
    cells, pictures, _ = Cells(tuple(Plane(*plane, 0, 1, 1) for plane in planes), (), ()).drawn(images, videos)
    return [(plane.image, plane.frame) for plane in cells.planes], [picture.tobytes()[0] for picture in pictures]


def test_of_frames_that_are_merged_the_first_is_drawn_behind_the_images():
    planes = [(0, 0), (1, 0), (1, 1), (2, 0)]
    found = drawn(planes, frames(9), [Video(frames(1, 2, 3, 4)), Video(frames(5, 6))])
    assert found == ([(0, 0), (1, 0), (2, 0), (3, 0)], [9, 1, 3, 5])


def test_frames_may_be_images_to_a_model():
    assert drawn([(0, 0), (1, 0), (2, 0)], (), [Video(frames(1, 2, 3))])[1] == [1, 2, 3]


def test_images_are_drawn_as_they_are():
    assert drawn([(0, 0), (1, 0)], frames(1, 2), []) == ([(0, 0), (1, 0)], [1, 2])


def named(planes, images, videos):
    return Cells(tuple(Plane(*plane, 0, 1, 1) for plane in planes), (), ()).drawn(images, videos)[2]


def test_frames_are_called_by_their_video_their_number_and_the_second():
    clip = Video(frames(1, 2, 3, 4), fps=2.0, name="clip.mp4")
    two = [(0, 0), (0, 1)]
    assert named(two, (), [clip]) == ["clip.mp4, frames 1-2 of 4, at 0.0 s", "clip.mp4, frames 3-4 of 4, at 1.0 s"]
    each = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]
    assert named(each, frames(9), [clip, Video(frames(5))]) == [
        "image 1", *(f"clip.mp4, frame {n + 1} of 4, at {n / 2:.1f} s" for n in range(4)), "video 2, frame 1 of 1"
    ]  # fmt: skip
    assert named([(0, 0)], frames(9), []) == [""]
    assert named(two[:1], (), [Video(frames(5))]) == ["video, frame 1 of 1"]


def test_of_an_odd_number_of_frames_the_last_is_merged_with_itself():
    planes = [(0, 0), (0, 1), (0, 2)]
    assert drawn(planes, (), [Video(frames(1, 2, 3, 4, 5))])[1] == [1, 3, 5]
    said = named(planes, (), [Video(frames(1, 2, 3, 4, 5))])
    assert said == ["video, frames 1-2 of 5", "video, frames 3-4 of 5", "video, frame 5 of 5"]
    assert named(planes, (), [Video(frames(1, 2, 3, 4))])[1:] == ["video, frame 2 of 4", "video, frames 3-4 of 4"]
    assert named(planes, (), [Video(frames(1, 2))])[2] == "video, frame 2 of 2"
