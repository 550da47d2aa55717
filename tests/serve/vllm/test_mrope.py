"""Positions under M-RoPE of what stays: those of the unpruned model, of images of any form and of videos."""

import math

import numpy as np
import pytest
import torch

from tests.qwen import prompt, tiny_qwen
from tokentrim.serve.vllm import mrope

TEXT, IMAGE, VIDEO = 1, 2, 3


def unpruned(parts, interval):
    """What transformers counts for text and pictures (frames, rows, cols), in order, and their merged tokens."""
    model = tiny_qwen("qwen2_5_vl").model
    ids, kinds, grids = [], [], {"image_grid_thw": [], "video_grid_thw": []}
    for part in parts:
        sizes = [part] if isinstance(part, int) else list(part)
        n, kind = math.prod(sizes), 0 if len(sizes) == 1 else 1 if sizes[0] == 1 else 2
        ids += [TEXT] * n
        kinds += [kind] * n
        if kind:
            grid = [sizes[0], 2 * sizes[1], 2 * sizes[2]]
            grids["image_grid_thw" if kind == 1 else "video_grid_thw"].append(grid)
    given = {name: torch.tensor(rows) for name, rows in grids.items() if rows}
    if "video_grid_thw" in given:
        given["second_per_grid_ts"] = torch.full((len(given["video_grid_thw"]),), interval)
    found, delta = model.get_rope_index(torch.tensor([ids]), torch.tensor([kinds], dtype=torch.int32), **given)
    return found[:, 0], int(delta)


@pytest.mark.parametrize(
    "parts",
    [
        (5, (1, 14, 10), 7),
        (5, (1, 10, 14), 7),
        (3, (3, 4, 14), 9),
        (2, (1, 3, 3), 1, (3, 2, 10), 3, (1, 9, 2), 4),
    ],
    ids=["portrait", "landscape", "video", "several"],
)
def test_what_stays_is_where_it_was(parts):
    seconds = 1.0
    expected, _ = unpruned(parts, seconds)
    per_frame = seconds * tiny_qwen("qwen2_5_vl").config.vision_config.tokens_per_second
    stays, pictures, behind, column, length = [], [], [], 0, 0
    for part in parts:
        if isinstance(part, int):
            stays += range(column, column + part)
            column, length = column + part, length + part
            continue
        frames, rows, cols = part
        step = per_frame if frames > 1 else 1.0
        whole = mrope.grid(frames, rows, cols, step)
        kept = torch.arange(1, frames * rows * cols, 3)  # whatever a strategy says
        pictures.append((length, len(kept), mrope.extent(whole)))
        behind.append((length, whole[:, kept]))
        stays += (column + kept).tolist()
        column, length = column + frames * rows * cols, length + len(kept)
    found = mrope.laid_out(length, pictures)
    for first, own in behind:
        found[:, first : first + own.shape[1]] += own
    assert torch.equal(found, expected[:, stays])


def test_text_follows_the_longest_side_time_among_them():
    assert mrope.extent(mrope.grid(2, 3, 5)) == 5
    taken = mrope.extent(mrope.grid(3, 3, 5, 9.0))
    found = mrope.laid_out(9, [(2, 4, taken)])
    assert found[0].tolist() == [0, 1, 2, 2, 2, 2, 21, 22, 23]
    assert torch.equal(found[0], found[2])


def test_a_fraction_of_a_position_per_frame_is_rounded_down_once():
    seconds = float(torch.tensor(0.08))  # 25 frames per second
    whole = mrope.grid(26, 1, 2, seconds * 4)
    assert whole[0, ::2].tolist() == (np.arange(26) * (seconds * 4)).astype(np.int64).tolist()
    assert mrope.extent(whole) == int(25 * (seconds * 4)) + 1


def test_frames_between_time_stamps_are_pictures_of_their_own():
    """As transformers counts them in Qwen3-VL."""
    model = tiny_qwen("qwen3_vl")
    given = prompt(model, [4, ("video", 3, 4, 2), 5])
    video = given["input_ids"][0] == model.config.video_token_id
    begins = int(video.nonzero()[0]) - 2  # the first frame's time stamp
    ends = int(video.nonzero()[-1]) + 2
    expected, _ = model.model.get_rope_index(
        given["input_ids"], given["mm_token_type_ids"], video_grid_thw=given["video_grid_thw"]
    )
    found = mrope.stamped(video[begins:ends], 4, 2)
    assert torch.equal(found + begins, expected[:, 0, begins:ends])
    assert mrope.extent(found) + begins == expected[0, 0, ends]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_number_format_rounds_positions(dtype):
    behind = torch.tensor([[0, 255, 256, 257, 601, 14400], [1, 2, 3, 4, 5, 6], [65535, 0, 512, 65536, 90001, 9]])
    features = torch.randn(6, 8, dtype=dtype)
    made = mrope.with_columns(features, behind)
    back, read = mrope.without_columns([made[:2], made[2:]])
    assert torch.equal(torch.cat(back), features)
    assert torch.equal(read, behind)
