"""``tokentrim run --video``."""

import pytest


@pytest.fixture
def clip(sample, tmp_path):
    path = tmp_path / "clip.gif"
    frames = [sample.images[0].rotate(90 * turn) for turn in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


RUN = ("run", "--prompt", "list all ?", "--strategy", "fastv", "--model", "testbed-plain", "--no-baseline")


def test_frames_are_images_to_a_model_that_takes_no_videos_and_that_is_said(cli, clip):
    result = cli(*RUN, "--video", clip, "--frames", "2", "--max-new-tokens", "2", "--json")
    assert "its 2 frames were asked about as images" in result.stderr
    assert result.data["kept"][0]["count"] == 200


def test_a_run_is_about_images_or_a_video(cli, clip, picture):
    for arguments in (("--video", clip, "--image", picture), ()):
        result = cli(*RUN, *arguments)
        assert result.exit_code == 2
        assert "either --image or --video" in result.stderr
