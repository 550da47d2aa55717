"""The processor of testbed-qwen2.5-vl with videos, which its published kin take by means of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokentrim.loading import load_processor

FRAMES = 2  # that become one plane of tokens
_VIDEO = "<|video_pad|>"
_PLACE = f"<|vision_start|> {_VIDEO} <|vision_end|>"


class Watching:
    """What the processor does, and pairs of frames as planes of tokens. ``times`` are what each call was told."""

    def __init__(self, processor: Any) -> None:
        self.plain, self.video_processor, self.times = processor, object(), list[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def apply_chat_template(self, turns: Any, **options: Any) -> str:
        place = {"type": "text", "text": _PLACE}
        told = [
            {**turn, "content": [place if part["type"] == "video" else part for part in turn["content"]]}
            for turn in turns
        ]
        return self.plain.apply_chat_template(told, **options)

    def __call__(
        self,
        text: list[str],
        videos: Any = (),
        video_metadata: Any = (),
        do_sample_frames: bool = False,
        **options: Any,
    ) -> Any:
        self.times += video_metadata
        filmed = [self._filmed(frames) for frames in videos]
        merge, lengths = self.plain.image_processor.merge_size**2, iter(filmed)
        texts: list[str] = []
        for line in text:
            first, *rest = line.split(_VIDEO)
            for part in rest:
                first += " ".join([_VIDEO] * (int(next(lengths)[1].prod()) // merge)) + part
            texts.append(first)
        made = self.plain(text=texts, **options)
        if filmed:
            made["pixel_values_videos"] = torch.cat([pixels for pixels, _ in filmed])
            made["video_grid_thw"] = torch.stack([grid for _, grid in filmed])
            made["mm_token_type_ids"][made["input_ids"] == self.plain.tokenizer.convert_tokens_to_ids(_VIDEO)] = 2
        return made

    def _filmed(self, frames: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches of a video, and its grid."""
        made = self.plain.image_processor(images=list(frames), return_tensors="pt")
        pixels, grid = made["pixel_values"], made["image_grid_thw"][0]
        patches = pixels.view(len(frames), int(grid.prod()), 3, FRAMES, -1)  # a still picture is two equal frames
        pairs = torch.stack([patches[0::FRAMES, :, :, 0], patches[1::FRAMES, :, :, 0]], dim=3)
        return pairs.flatten(0, 1).flatten(1), torch.tensor([len(frames) // FRAMES, *grid[1:].tolist()])


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> list[Watching]:
    """Let testbed-qwen2.5-vl take videos; the processors that were made since."""
    made: list[Watching] = []

    def processor(folder: Path) -> Any:
        found = load_processor(folder)
        if folder.name != "testbed-qwen2.5-vl":
            return found
        made.append(Watching(found))
        return made[-1]

    for place in ("tokentrim.loading.models", "tokentrim.runs.questions"):
        monkeypatch.setattr(f"{place}.load_processor", processor)
    return made
