"""Qwen2-VL in vLLM, pruned: pictures, and videos whose frames are one position apart."""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.contracts.adapter import Modality
from tokentrim.serve.vllm import mrope
from tokentrim.serve.vllm.processing import Trimming
from tokentrim.serve.vllm.qwen import PrunedQwen


class Qwen2Trimming(Trimming, Qwen2VLMultiModalProcessor):
    """Prompts of Qwen2-VL with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2Trimming, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class TokentrimQwen2VL(PrunedQwen, Qwen2VLForConditionalGeneration):
    """Qwen2-VL whose pictures and videos are pruned as soon as they are encoded."""

    def whole(self, modality: Modality, size: Tensor, beside: Any) -> Tensor:
        """A grid."""
        return mrope.grid(*self.merged(size))
