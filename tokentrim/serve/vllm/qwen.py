"""What Qwen-VLs share in vLLM, pruned: what stays keeps the positions that it has in the unpruned model.

One function of each family lays a whole picture or video out, as vLLM does without pruning. What lies behind it in the
prompt begins where that ends, and what stays of it is at its place there.
"""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokentrim.contracts.adapter import MODALITIES, Modality
from tokentrim.serve.vllm import mrope
from tokentrim.serve.vllm.bridge import PictureKept
from tokentrim.serve.vllm.trimmer import Trimmer

if TYPE_CHECKING:  # a mixin: the model of vLLM comes behind it
    _Model: Any = object
else:
    _Model = object


class PrunedQwen(_Model):
    """A Qwen-VL whose pictures and videos are pruned as soon as they are encoded."""

    supports_mm_device_do_normalize = False  # noise is seeded by pixels as processors of transformers make them
    beside = ""
    """What vLLM hands along with a video, and its positions depend on, if they do on anything."""
    width: int | None = None
    """How much of each feature enters the first layer; the rest is added behind deeper ones."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        tower: Any = self.visual
        self.trimmer = Trimmer.of(self.config, [block.attn.attn for block in tower.blocks], tower.merger)
        self._behind: tuple[Tensor, Tensor] | None = None

    def merged(self, size: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of visual tokens, of a size in patches."""
        frames, rows, cols = (int(n) for n in size.tolist())
        merge = self.config.vision_config.spatial_merge_size
        return frames, rows // merge, cols // merge

    def whole(self, modality: Modality, size: Tensor, beside: Any) -> Tensor:
        """int64 [3, tokens]: positions of an unpruned picture or video, counted from its beginning."""
        raise NotImplementedError

    def placed(self, modality: Modality, one: PictureKept, size: Tensor, beside: Any) -> Tensor:
        """What stays of a picture or video, with its positions in columns."""
        return mrope.with_columns(one.features, self.whole(modality, size, beside)[:, one.places.cpu()])

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """What stays of each picture, with its positions beside it: [n, D + 9]."""
        made: list[Tensor] = []
        for modality in MODALITIES:
            sizes = kwargs.get(f"{modality}_grid_thw")
            if sizes is None:
                continue
            of_video = {name for name in kwargs if "video" in name} | {self.beside}
            own = {name: value for name, value in kwargs.items() if (modality == "video") == (name in of_video)}
            packed = [rows * cols for frames, rows, cols in sizes.tolist() for _ in range(frames)]
            kept = self.trimmer.kept(modality, own, super().embed_multimodal, packed=packed, width=self.width)
            beside = own.get(self.beside)
            told: Any = [None] * len(kept) if beside is None else beside
            made += [self.placed(modality, *each) for each in zip(kept, sizes, told, strict=True)]
        return made

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt, and how far they reach beyond its tokens."""
        pictures: list[tuple[int, int, int]] = []
        for one in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            beside = one.data.get(self.beside)
            size = one.data[f"{one.modality}_grid_thw"].data
            whole = self.whole(one.modality, size, None if beside is None else beside.data)
            pictures.append((one.mm_position.offset, one.mm_position.length, mrope.extent(whole)))
        found = mrope.laid_out(len(input_tokens), pictures)
        return found, mrope.extent(found) - len(input_tokens)

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
