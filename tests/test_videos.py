"""Frames of videos: at equal distances, from folders, moving pictures and decoders, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokentrim import reading
from tokentrim.errors import DataError, UnsupportedError
from tokentrim.loading import load_video


def greys(frames: tuple[Image.Image, ...]) -> list[int]:
    return [int(np.asarray(frame).mean()) for frame in frames]


@pytest.fixture(params=["folder", "clip.gif"])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Ten frames, each a grey of its own."""
    frames = [Image.new("RGB", (8, 8), (20 * place,) * 3) for place in range(10)]
    path = tmp_path / str(request.param)
    if path.suffix:
        frames[0].save(path, save_all=True, append_images=frames[1:])
        return path
    path.mkdir()
    for place, frame in enumerate(frames):
        frame.save(path / f"{place:03}.png")
    return path


@pytest.mark.parametrize(
    ("wanted", "found"), [(5, [0, 40, 80, 120, 160]), (3, [0, 60, 120]), (16, list(range(0, 200, 20)))]
)
def test_frames_lie_at_equal_distances(video: Path, wanted: int, found: list[int]):
    frames = load_video(video, wanted).frames
    assert greys(frames) == found
    assert {frame.mode for frame in frames} == {"RGB"}


def test_frames_are_called_by_the_second_at_which_they_are_shown(video: Path):
    found = load_video(video, 4)  # 0, 2, 5 and 7 of ten
    assert found.called(2, 3) == f"{video.name}, frames 3-4 of 4"
    if video.suffix:
        first, *others = (Image.new("RGB", (8, 8), (20 * place,) * 3) for place in range(10))
        first.save(video, save_all=True, append_images=others, duration=200)
        assert load_video(video, 4).called(2, 2) == "clip.gif, frame 3 of 4, at 1.0 s"


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_each_frame_may_be_shown_for_its_own_time(tmp_path: Path, kind: str):
    first, *others = (Image.new("RGB", (8, 8), (60 * grey,) * 3) for grey in range(4))
    times = [100, 1000, 100, 800]
    first.save(tmp_path / f"clip.{kind}", save_all=True, append_images=others, duration=times)
    whole, half = (load_video(tmp_path / f"clip.{kind}", frames) for frames in (4, 2))
    assert whole.seconds == pytest.approx((0, 0.1, 1.1, 1.2))
    assert half.seconds == pytest.approx((0, 1.1))
    assert (whole.fps, half.fps) == (2.0, 1.0)


def test_what_is_no_video_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    for name, message in (("nowhere.mp4", "an existing file"), ("empty", "hold pictures"), ("broken.gif", "readable")):
        with pytest.raises(DataError, match=message):
            load_video(tmp_path / name, 4)


def test_a_decoder_that_is_not_there_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"Run pip install 'tokentrim-vlm\[video\]', or pass a folder of frames"):
        load_video(tmp_path / "clip.mp4", 4)


def test_a_decoder_is_asked_for_the_same_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import video_utils

    asked = dict[str, object]()

    class Metadata:
        total_num_frames, fps = 10, 5.0

    def decode(path: str, *, backend: str, sample_indices_fn):
        asked.update(path=path, backend=backend, places=sample_indices_fn(Metadata()).tolist())
        return np.zeros((4, 8, 8, 3), np.uint8), Metadata()

    (tmp_path / "clip.mp4").write_bytes(b"0")
    monkeypatch.setattr(reading, "find_spec", lambda name: object() if name == "cv2" else None)
    monkeypatch.setattr(video_utils, "load_video", decode)
    found = load_video(tmp_path / "clip.mp4", 4)
    assert (len(found.frames), found.fps) == (4, 2.0)  # four of two seconds
    assert found.called(2, 2) == "clip.mp4, frame 3 of 4, at 1.0 s"
    assert asked == {"path": str(tmp_path / "clip.mp4"), "backend": "opencv", "places": [0, 2, 5, 7]}


def test_a_file_is_decoded(tmp_path: Path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for place in range(10):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (20 * place,) * 3))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert greys(load_video(tmp_path / "clip.mp4", 5).frames) == pytest.approx([0, 40, 80, 120, 160], abs=6)
