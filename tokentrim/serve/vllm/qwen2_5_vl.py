"""Qwen2.5-VL in vLLM, pruned: pictures, and videos whose frames are as many positions apart as seconds pass."""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.contracts.adapter import Modality
from tokentrim.serve.vllm import mrope
from tokentrim.serve.vllm.processing import Trimming
from tokentrim.serve.vllm.qwen import PrunedQwen


class Qwen25Trimming(Trimming, Qwen2_5_VLMultiModalProcessor):
    """Prompts of Qwen2.5-VL with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25Trimming, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class TokentrimQwen25VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose pictures and videos are pruned as soon as they are encoded."""

    beside = "second_per_grid_ts"

    def whole(self, modality: Modality, size: Tensor, beside: Any) -> Tensor:
        """A grid; a video's frames are ``tokens_per_second`` positions of each second apart."""
        per_frame = 1.0
        if modality == "video":
            seconds = 1.0 if beside is None else float(beside)
            per_frame = seconds * getattr(self.config.vision_config, "tokens_per_second", 1.0)
        return mrope.grid(*self.merged(size), per_frame)
