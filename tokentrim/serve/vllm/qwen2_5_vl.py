"""Qwen2.5-VL in vLLM, pruned: images and videos; what stays keeps the positions that it has in the unpruned model."""

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
from tokentrim.serve.vllm.trimmer import Trimmer


class Qwen25Trimming(Trimming, Qwen2_5_VLMultiModalProcessor):
    """Prompts of Qwen2.5-VL with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25Trimming, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class TokentrimQwen25VL(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose pictures are pruned as soon as they are encoded."""

    supports_mm_device_do_normalize = False  # noise is seeded by pixels as processors of transformers make them

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        tower: Any = self.visual
        self.trimmer = Trimmer.of(self.config, [block.attn.attn for block in tower.blocks], tower.merger)
        self._behind: tuple[Tensor, Tensor] | None = None

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """What stays of each picture, with its positions beside it: [n, D + 6]."""
        made: list[Tensor] = []
        modalities: tuple[Modality, ...] = ("image", "video")
        for modality in modalities:
            sizes = kwargs.get(f"{modality}_grid_thw")
            if sizes is None:
                continue
            own = {name: value for name, value in kwargs.items() if (modality == "video") == _is_of_video(name)}
            packed = [rows * cols for frames, rows, cols in sizes.tolist() for _ in range(frames)]
            kept = self.trimmer.kept(modality, own, super().embed_multimodal, packed=packed)
            seconds = kwargs.get("second_per_grid_ts") if modality == "video" else None
            for item, one in enumerate(kept):
                behind = self._grid(sizes[item], None if seconds is None else seconds[item])
                made.append(mrope.with_columns(one.features, behind[:, one.places.cpu()]))
        return made

    def _grid(self, size: Tensor, seconds: Tensor | None) -> Tensor:
        """int64 [3, tokens]: where a picture's tokens are in the unpruned model, counted from its beginning."""
        frames, rows, cols = (int(n) for n in size.tolist())
        merge = self.config.vision_config.spatial_merge_size
        return mrope.grid(frames, rows // merge, cols // merge, self._per_frame(seconds))

    def _per_frame(self, seconds: Tensor | None) -> float:
        """Positions from one frame of a video to the next."""
        if seconds is None:
            return 1.0
        return float(seconds) * getattr(self.config.vision_config, "tokens_per_second", 1.0)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt, and how far they reach beyond its tokens."""
        lengths = {one.mm_position.offset: one.mm_position.length for one in mm_features}
        pictures = [
            (offset, lengths[offset], (1 + int((frames - 1) * per_frame), rows, cols))
            for offset, frames, rows, cols, per_frame in self.iter_mm_grid_thw(mm_features)
        ]
        found = mrope.laid_out(len(input_tokens), pictures)
        return found, int(found.max()) + 1 - len(input_tokens)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Embeddings of tokens and pictures; where the latter are is kept for the forward that follows."""
        self._behind = None
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            multimodal_embeddings, behind = mrope.without_columns(multimodal_embeddings)
            self._behind = (is_multimodal.nonzero()[:, 0].to(behind.device), behind)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The language model, with positions of what stays of pictures."""
        if self._behind is not None:
            (columns, behind), self._behind = self._behind, None
            # In place: whoever captured a graph of what follows reads this very memory. vLLM fills it for each step.
            positions[:, columns] += behind.to(positions.dtype)
        return super().forward(input_ids, positions, *args, **kwargs)


def _is_of_video(name: str) -> bool:
    return "video" in name or name == "second_per_grid_ts"
