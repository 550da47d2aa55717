"""LLaVA 1.5 in vLLM, pruned: positions of a prompt are counted without gaps, since vLLM has no others for it."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.serve.vllm.processing import Trimming
from tokentrim.serve.vllm.trimmer import Trimmer


class LlavaTrimming(Trimming, LlavaMultiModalProcessor):
    """Prompts of LLaVA with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(LlavaTrimming, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class TokentrimLlava(LlavaForConditionalGeneration):
    """LLaVA whose pictures are pruned as soon as they are encoded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.trimmer = Trimmer.of_clip(self)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """What stays of each picture: [n, D]."""
        return [one.features for one in self.trimmer.kept("image", kwargs, super().embed_multimodal)]
