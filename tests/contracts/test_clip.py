"""Visual tokens and text in CLIP's common space, against transformers' own model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests.clip import LENGTH, clip_folder
from tokentrim.contracts.toolkit.clip import ClipSpace
from tokentrim.errors import DataError

CPU = torch.device("cpu")


def test_it_is_the_models_own_space(tmp_path: Path) -> None:
    space = ClipSpace.of(clip_folder(tmp_path, 8), CPU)
    model = CLIPModel.from_pretrained(tmp_path).eval()
    assert (space.width, space.length) == (8, LENGTH)
    found, real = space.texts(["w3 w5", "", "w9 w8 w7 w6 w5 w4"])
    assert real.tolist() == [[True, False], [True, False], [True, True]]
    pieces = [
        ([96, 3, 5, 97, 0, 0, 0], 4, found[0, 0]),
        ([96, 97, 0, 0, 0, 0, 0], 2, found[1, 0]),
        ([96, 9, 8, 7, 6, 5, 4], 7, found[2, 0]),
        ([97, 0, 0, 0, 0, 0, 0], 1, found[2, 1]),
    ]
    with torch.no_grad():
        for ids, n, vector in pieces:
            mask = (torch.arange(LENGTH) < n).long()[None]
            pooled = model.text_model(input_ids=torch.tensor([ids]), attention_mask=mask).pooler_output
            torch.testing.assert_close(vector, model.text_projection(pooled)[0])
        vectors = torch.randn(2, 3, 8, dtype=torch.float16)
        expected = model.visual_projection(model.vision_model.post_layernorm(vectors.float()))
    torch.testing.assert_close(space.images(vectors), expected)


def test_a_folder_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    first = ClipSpace.of(clip_folder(tmp_path, 8), CPU)
    assert ClipSpace.of(tmp_path, CPU) is first
    assert ClipSpace.of(clip_folder(tmp_path, 8, seed=1), CPU).width == 8
    assert ClipSpace.of(tmp_path, CPU) is not first


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the CLIP checkpoint in"):
        ClipSpace.of(tmp_path / "nowhere", CPU)
    clip_folder(tmp_path, 8)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="both projections.*visual_projection"):
        ClipSpace.of(tmp_path, CPU)
