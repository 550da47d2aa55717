"""Qwen3-VL with a mixture of experts in vLLM, pruned: experts see tokens one by one, so nothing is different."""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.serve.vllm.qwen3_vl import PrunedQwen3, Qwen3Trimming


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3Trimming, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class TokentrimQwen3VLMoe(PrunedQwen3, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL whose pictures and videos are pruned as soon as they are encoded."""
