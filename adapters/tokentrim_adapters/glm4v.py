"""GLM-4.1V, GLM-4.5V and GLM-4.6V: as Qwen-VL, with a tower, a merger and a way to resize of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokentrim import NOMINAL_SIZE, Layout, ModelShape, NativeResolution, VisionShape, decoder_shape
from tokentrim_adapters.qwen_vl import QwenVLAdapter

_FRAMES = 2  # that an image is repeated to, and that limits of the area count
_LIMITS = (12544, 11760000)  # pixels, of both frames, of transformers' processor; a folder's own go before
# What published checkpoints have, and the configuration classes leave out.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}


class Glm4vAdapter(QwenVLAdapter):
    """``Glm4v-``, ``Glm4vMoe-`` and ``Glm46VForConditionalGeneration``.

    An image of h x w patches becomes h/2 x w/2 visual tokens in raster order, a video one such plane per two frames,
    each with a time stamp behind it, which is text. Placeholders of videos are those of images: ``mm_token_type_ids``
    tell them apart.

    ```bibtex
    @misc{vteam2025glm41v,
      title={{GLM-4.5V} and {GLM-4.1V-Thinking}: Towards Versatile Multimodal Reasoning with Scalable Reinforcement
             Learning},
      author={{V Team}},
      year={2025},
      note={arXiv:2507.01006}
    }
    ```
    """

    name: ClassVar[str] = "glm4v"
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v")
    decoders: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe")

    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """Numbers of the text and vision configs; of a mixture of experts, those that a token runs through."""
        text, vision = config.text_config, config.vision_config
        experts = getattr(text, "num_experts_per_tok", None)
        joined, out = vision.hidden_size * vision.spatial_merge_size**2, vision.out_hidden_size
        least, most = (limit // _FRAMES for limit in _LIMITS)
        tower = VisionShape(
            n_layers=vision.depth,
            hidden_size=vision.hidden_size,
            intermediate_size=out,
            ffn_matrices=3,
            merge=vision.spatial_merge_size,
            projector_weights=joined * out + out * out + 3 * out * vision.intermediate_size,
            tiling=RepeatedFrames(vision.patch_size, vision.spatial_merge_size, least, most),
        )
        return decoder_shape(
            config,
            text,
            name=name,
            bytes_per_element=bytes_per_element,
            dtype=torch.bfloat16,
            vision=tower.for_image(*NOMINAL_SIZE),
            width=(experts + (text.n_shared_experts or 0)) * text.moe_intermediate_size if experts else None,
        )

    def modalities(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor:
        """Placeholders by id; which are of videos, by ``mm_token_type_ids``."""
        found = super().modalities(layout, arguments).clamp(max=1)
        kinds: Tensor | None = arguments.get("mm_token_type_ids")
        if kinds is None:
            return found
        # Tokens that a draft appended are text, and of a prompt that is continued only the end comes.
        columns = found.shape[1]
        kinds = torch.nn.functional.pad(kinds, (0, max(0, columns - kinds.shape[1])))[:, -columns:]
        return found + found * (kinds == 2).to(found.dtype)

    def example_config(self, model_type: str) -> Any | None:
        """transformers' default one, with the rotary sections of the published checkpoints."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # only tests need it

        config_class: Any = CONFIG_MAPPING[model_type]
        return config_class(text_config={"rope_parameters": dict(_ROPE), "head_dim": 128})


@dataclass(frozen=True)
class RepeatedFrames(NativeResolution):
    """Images as of two frames, to which the processor's limits of the area apply; thin ones are enlarged first."""

    def with_limits(self, settings: Mapping[str, Any]) -> NativeResolution:
        """The same with the limits of an image processor's settings, which count both frames."""
        both = replace(self, min_pixels=self.min_pixels * _FRAMES, max_pixels=self.max_pixels * _FRAMES)
        found = NativeResolution.with_limits(both, settings)
        return replace(found, min_pixels=found.min_pixels // _FRAMES, max_pixels=found.max_pixels // _FRAMES)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is brought to: multiples of a token's pixels, area within the limits."""
        unit = self.patch * self.merge
        if 0 < min(height, width) < unit:
            scale = max(unit / height, unit / width)
            height, width = int(height * scale), int(width * scale)
        return super().resized(height, width)
