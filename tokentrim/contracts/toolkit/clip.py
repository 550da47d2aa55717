"""CLIP beside a model whose vision tower is CLIP's: what brings visual tokens and text into one space."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from tokentrim.errors import DataError, complaint, reason_of

_MODULES: Final = ("text", "text_head", "image_norm", "image_head")


@dataclass(frozen=True)
class ClipSpace:
    """The text tower of a CLIP checkpoint and the heads of both towers, in float32 on one device.

    Attributes:
        folder: of the checkpoint.
        text: text tokens to a vector per text.
        text_head: that vector to the common space.
        image_norm: layer norm behind the vision tower.
        image_head: a vector of the vision tower to the common space.
        tokenizer: of the text tower.
        length: tokens of a text that the tower takes at once.
    """

    folder: Path
    text: Any
    text_head: Any
    image_norm: Any
    image_head: Any
    tokenizer: Any
    length: int

    @classmethod
    def of(cls, folder: Path, device: torch.device) -> ClipSpace:
        """That of a folder, read once for each state of its files and each device.

        Raises:
            DataError: when it holds no whole CLIP checkpoint with its tokenizer.
        """
        # Of the folder's files, since the folder itself does not change when one of them does.
        files = sorted((one.name, one.stat().st_mtime_ns) for one in folder.iterdir()) if folder.is_dir() else []
        return _loaded(folder, tuple(files), device)

    @property
    def width(self) -> int:
        """Numbers of the vision tower's vectors."""
        return int(self.image_head.in_features)

    def images(self, vectors: Tensor) -> Tensor:
        """float32 [..., C]: vectors [..., D_vision] of the vision tower in the common space."""
        with torch.no_grad():
            return self.image_head(self.image_norm(vectors.float()))

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(float32 [B, M, C], bool [B, M]): every text in the common space, one vector for ``length`` tokens of it.

        Pieces are cut as they come, and filled up with token 0, which is not attended to.
        """
        device, pieces, counts = self.image_head.weight.device, list[list[int]](), list[int]()
        for text in texts:
            tokens: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
            parts = [tokens[at : at + self.length] for at in range(0, len(tokens), self.length)]
            pieces += parts
            counts.append(len(parts))
        ids = torch.zeros(len(pieces), self.length, dtype=torch.long)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = torch.tensor(piece)
        real = torch.arange(self.length) < torch.tensor([[len(piece)] for piece in pieces])
        with torch.no_grad():
            pooled = self.text(input_ids=ids.to(device), attention_mask=real.long().to(device)).pooler_output
            vectors = self.text_head(pooled).split(counts)
        found = nn.utils.rnn.pad_sequence(vectors, batch_first=True)
        return found, torch.arange(found.shape[1], device=device) < torch.tensor(counts, device=device).unsqueeze(1)


@lru_cache(maxsize=4)
def _loaded(folder: Path, files: tuple[tuple[str, int], ...], device: torch.device) -> ClipSpace:
    if device.type != "cpu":
        space = _loaded(folder, files, torch.device("cpu"))
        moved = {name: deepcopy(getattr(space, name)).to(device) for name in _MODULES}
        return ClipSpace(folder, **moved, tokenizer=space.tokenizer, length=space.length)
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    auto, clip, what = cast(Any, AutoTokenizer), cast(Any, CLIPModel), f"the CLIP checkpoint in {folder}"
    try:
        config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, info = clip.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
        tokenizer = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as cause:  # transformers raises whatever a broken file led to
        raise DataError(complaint(what, "load", hint=reason_of(cause))) from cause
    if config.model_type != "clip" or info["missing_keys"]:
        got = sorted(info["missing_keys"])[:4] or config.model_type
        raise DataError(complaint(what, "hold both towers and both projections of a CLIP model; missing", got,
                                  "name the folder of the checkpoint that the model's vision tower is of"))  # fmt: skip
    model = model.eval().requires_grad_(False)
    return ClipSpace(
        folder,
        text=model.text_model,
        text_head=model.text_projection,
        image_norm=model.vision_model.post_layernorm,
        image_head=model.visual_projection,
        tokenizer=tokenizer,
        length=int(config.text_config.max_position_embeddings),
    )
