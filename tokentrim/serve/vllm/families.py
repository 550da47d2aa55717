"""Which models of vLLM can be pruned. This file imports nothing, because every process of vLLM reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ServedFamily:
    """One family.

    Attributes:
        by: the class of vLLM that serves it, which is its architecture too.
        pruned: the architecture that it becomes when it is pruned.
        target: ``package.module:Class`` of that.
    """

    by: str
    pruned: str
    target: str


_HERE: Final = "tokentrim.serve.vllm"
SERVED: Final = {
    "llava": ServedFamily("LlavaForConditionalGeneration", "TokentrimLlava", f"{_HERE}.llava:TokentrimLlava"),
    "llava_next": ServedFamily(
        "LlavaNextForConditionalGeneration", "TokentrimLlavaNext", f"{_HERE}.llava_next:TokentrimLlavaNext"
    ),
    "qwen2_vl": ServedFamily(
        "Qwen2VLForConditionalGeneration", "TokentrimQwen2VL", f"{_HERE}.qwen2_vl:TokentrimQwen2VL"
    ),
    "qwen2_5_vl": ServedFamily(
        "Qwen2_5_VLForConditionalGeneration", "TokentrimQwen25VL", f"{_HERE}.qwen2_5_vl:TokentrimQwen25VL"
    ),
    "qwen3_vl": ServedFamily(
        "Qwen3VLForConditionalGeneration", "TokentrimQwen3VL", f"{_HERE}.qwen3_vl:TokentrimQwen3VL"
    ),
    "qwen3_vl_moe": ServedFamily(
        "Qwen3VLMoeForConditionalGeneration", "TokentrimQwen3VLMoe", f"{_HERE}.qwen3_vl_moe:TokentrimQwen3VLMoe"
    ),
}
"""By transformers' ``model_type``."""
