"""Questions about videos, from a file to a report."""

import json

import pytest
from PIL import Image

import tests.watching
from tokentrim.compare import run
from tokentrim.errors import DataError, UnsupportedError
from tokentrim.plugins.loader import registry

watching = tests.watching.watching  # a fixture
MODEL = "testbed-qwen2.5-vl"
COMPARED = {
    "models": [MODEL], "tasks": ["mine.jsonl"], "strategies": ["random"], "controls": ["downscale"], "budgets": [0.5],
    "text_only": False, "timing": False, "pictures": 2,
}  # fmt: skip


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Two questions, one about a moving picture and one about a folder of frames."""
    monkeypatch.chdir(tmp_path)
    frames = []
    for number, sample in enumerate(registry("task").get("where").samples("test", 2)):
        frames = [sample.images[0].rotate(90 * turn) for turn in range(4)]
        frames[0].save(f"{number}.gif", save_all=True, append_images=frames[1:], duration=500)
    (tmp_path / "frames").mkdir()
    for place, frame in enumerate(frames):
        frame.save(f"frames/{place}.png")
    rows = [
        {"video": "0.gif", "question": "where is ring ?", "answer": "left"},
        {"video": "frames", "frames": 2, "question": "where is ring ?", "answer": "right"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_videos_are_compared_and_every_frame_that_the_model_sees_is_drawn(clips, watching):
    found = run(COMPARED, clips / "run")
    assert not found.failures
    assert [time["fps"] for processor in watching for time in processor.times][:2] == [2.0, None]
    gallery = json.loads((clips / "run" / "gallery.json").read_text())
    first, second = sorted(gallery["questions"], key=lambda question: question["sample"])
    for question, planes in ((first, 2), (second, 1)):
        names = [picture["name"] for picture in gallery["images"][question["images"]]]
        assert names[0] == ("0.gif, frames 1-2 of 4, at 0.0 s" if planes == 2 else "frames, frames 1-2 of 2")
        assert len(names) == planes
        assert [plane[0] for plane in question["cells"][0]["planes"]] == list(range(planes))
    assert any("answers nothing of mine.jsonl right" in note for note in found.data["notes"])
    (skipped,) = json.loads((clips / "run" / "summary.json").read_text())["skipped"]
    assert (skipped["method"], skipped["skipped"][:37]) == ("downscale", "frames of videos are not made smaller")
    assert (clips / "run" / "kept.png").is_file()


def test_a_model_that_takes_no_videos_is_refused_by_name_before_anything_runs(clips):
    with pytest.raises(
        UnsupportedError, match=rf"model '{MODEL}' must take videos, which 'mine.jsonl:1' of task 'mine"
    ):
        run(COMPARED, clips / "run")
    assert not (clips / "run").exists()


def test_a_clip_that_cannot_be_read_is_named_with_its_line_before_anything_runs(clips):
    (clips / "0.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"mine.jsonl:1: the video must be readable; got '0.gif'"):
        run(COMPARED, clips / "run")


def test_a_question_about_a_video_is_explained(clips, watching, monkeypatch):
    from typer.testing import CliRunner

    from tokentrim.cli import app

    called = ["explain", "--task", "mine.jsonl:0", "--model", MODEL, "--strategy", "fastv", "--max-new-tokens", "2"]
    result = CliRunner().invoke(app, called)
    assert result.exit_code == 0, result.stderr
    with Image.open("explained/side-by-side.png") as drawn:
        assert drawn.size[0] > 100
    numbers = json.loads((clips / "explained" / "explain.json").read_text())
    assert [plane[0] for plane in numbers["strategies"][0]["cells"]["planes"]] == [0, 1]
