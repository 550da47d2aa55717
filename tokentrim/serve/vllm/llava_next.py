"""LLaVA-NeXT in vLLM, pruned: a thumbnail and tiles are one picture, whose line ends stay; positions without gaps."""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokentrim.serve.vllm.bridge import ServedPictures
from tokentrim.serve.vllm.processing import Trimming
from tokentrim.serve.vllm.trimmer import Trimmer


class LlavaNextTrimming(Trimming, LlavaNextMultiModalProcessor):
    """Prompts of LLaVA-NeXT with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextTrimming, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class TokentrimLlavaNext(LlavaNextForConditionalGeneration):
    """LLaVA-NeXT whose pictures are pruned as soon as they are encoded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.trimmer = Trimmer.of_clip(self)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """What stays of each picture: [n, D]."""
        made = self.trimmer.kept("image", kwargs, super().embed_multimodal, trimmed=_without_padding)
        return [one.features for one in made]


def _without_padding(pictures: ServedPictures, read: list[Tensor]) -> list[Tensor]:
    """What was read of the tiles that each picture has; vLLM encodes those, too, that only pad a batch."""
    given: Any = pictures.encoding.arguments["pixel_values"]
    made = torch.cat(read).split([len(tiles) for tiles in given])
    return [tiles[: len(pictures.pixels(item))] for item, tiles in enumerate(made)]
