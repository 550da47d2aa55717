"""Qwen3-VL in vLLM, pruned: pictures, and videos whose frames stand between time stamps.

DeepStack adds features of several depths of the tower behind the first layers of the language model. vLLM carries them
behind a token's own, so they stay and go with it.
"""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.contracts.adapter import Modality
from tokentrim.serve.vllm import mrope
from tokentrim.serve.vllm.asked import kept
from tokentrim.serve.vllm.bridge import PictureKept
from tokentrim.serve.vllm.processing import Shortened, Trimming, as_bad_request
from tokentrim.serve.vllm.qwen import PrunedQwen


class Qwen3Trimming(Trimming, Qwen3VLMultiModalProcessor):
    """Prompts of Qwen3-VL with pruned pictures."""

    def _shortened(self, text: str, mm_items: Any, modality: str, whole: Any, item: int) -> Shortened:
        """A video, its time stamps too, is one piece of as many placeholders as tokens stay of both.

        Of which frame they are is known only when it is encoded: all are replaced then, time stamps by themselves.
        """
        if modality != "video":
            return super()._shortened(text, mm_items, modality, whole, item)
        tokens: list[int] = whole(item).full
        visual = [n for n, token in enumerate(tokens) if token == self.info.get_hf_config().video_token_id]
        with as_bad_request():
            stay = kept(text, self._family.shape, len(visual))
        gone = set(visual[stay:])
        left = [token for n, token in enumerate(tokens) if n not in gone]
        return Shortened(left, kept=stay, dropped=len(gone))


class PrunedQwen3(PrunedQwen):
    """What both of its language models share."""

    beside = "timestamps"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.width = self.visual_dim

    def whole(self, modality: Modality, size: Tensor, beside: Any) -> Tensor:
        """A grid; of a video a grid for each frame, with the text between them."""
        frames, rows, cols = self.merged(size)
        if modality == "image":
            return mrope.grid(frames, rows, cols)
        return mrope.stamped(self._ids(size, beside) == self.config.video_token_id, rows, cols)

    def placed(self, modality: Modality, one: PictureKept, size: Tensor, beside: Any) -> Tensor:
        """What stays of a picture; of a video, with the text between its frames, which has no features of depths."""
        if modality == "image":
            return super().placed(modality, one, size, beside)
        ids = self._ids(size, beside)
        stays = ids != self.config.video_token_id
        own = (~stays).nonzero()[:, 0][one.places.cpu()]
        text = self.language_model.embed_input_ids(ids.to(one.features.device))
        rows = one.features.new_zeros(len(ids), one.features.shape[1])
        rows[:, : text.shape[1]] = text
        rows[own.to(rows.device)] = one.features
        stays[own] = True
        return mrope.with_columns(rows[stays.to(rows.device)], self.whole(modality, size, beside)[:, stays])

    def _ids(self, size: Tensor, stamps: Any) -> Tensor:
        """int64 [tokens]: what an unpruned video is in a prompt."""
        frames, rows, cols = self.merged(size)
        ids = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[rows * cols] * frames,
            timestamps=stamps,
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        )
        return torch.tensor(ids.full)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3Trimming, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class TokentrimQwen3VL(PrunedQwen3, Qwen3VLForConditionalGeneration):
    """Qwen3-VL whose pictures and videos are pruned as soon as they are encoded."""
