"""Model geometries for timing: models with weights made up in memory, and prompts of images and text for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.bench.families import llava, llava_next, qwen
from tokentrim.bench.families.base import Geometry
from tokentrim.engine.seams.private import built

GEOMETRIES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {**llava.GEOMETRIES, **llava_next.GEOMETRIES, **qwen.GEOMETRIES}
)
"""Geometries by name."""


def build_model(geometry: Geometry, device: torch.device, dtype: torch.dtype, seed: int, **how: Any) -> Any:
    """An untrained model of the geometry, built as ``how`` says; torch's global random state is left as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = built(geometry.model_class(), geometry.config(), dtype=dtype, **how)
    model = model.to(device).eval()
    # Random weights end an answer at random; every run has to generate the same number of tokens.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def build_prompt(
    geometry: Geometry, model: Any, *, batch: int, prompt_tokens: int, seed: int, images: int = 1
) -> dict[str, Tensor]:
    """Inputs of ``generate``: per row one begin token, the images with their marks, then the rest of the text."""
    generator = torch.Generator().manual_seed(seed)
    text = geometry.text(batch, prompt_tokens, generator)
    image = geometry.image_ids().repeat(batch, images)
    ids = torch.cat([text[:, :1], image, text[:, 1:]], dim=1)
    found = {**geometry.text_inputs(ids), **geometry.pictures_of(batch, images, generator)}
    return {name: value.to(model.device, _dtype(value, model.dtype)) for name, value in found.items()}


def _dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Pixels take the model's, ids and sizes keep their own."""
    return dtype if value.is_floating_point() else value.dtype
