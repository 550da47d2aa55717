"""What the LLaVA families share: where their modules are, and the numbers of their configs."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from tokentrim import (
    NOMINAL_SIZE,
    AdapterError,
    Layout,
    ModelShape,
    Need,
    Tiling,
    TowerBlock,
    VisionShape,
    complaint,
    decoder_shape,
    submodule,
)

DECODERS: Final = ("llama", "mistral", "qwen2")
"""What these families are tested with; any other decoder has to pass the self-test."""


def locate(model: nn.Module, shape: ModelShape, *, structured: bool = False) -> Layout:
    """Modules of a model with ``language_model`` and ``vision_tower`` side by side, under a head or without one.

    Args:
        model: the whole model, or the one without a head.
        shape: its numbers; bytes per element are taken from its weights.
        structured: whether it puts line ends among its placeholders.

    Raises:
        AdapterError: when its layout has drifted.
    """
    entry = entry_of(model)
    language = submodule(entry, "language_model", type(entry).__name__)
    tower = submodule(entry, "vision_tower", type(entry).__name__)
    config: Any = entry.config
    blocks = _plain_blocks(tower) if isinstance(config.vision_feature_layer, int) else ()
    embeddings = [module for name, module in tower.named_modules() if name.endswith("embeddings")]
    return Layout.around(
        entry,
        language,
        vision_attentions=_vision_attentions(tower),
        vision_config=tower.config,
        has_cls=any(hasattr(module, "class_embedding") or hasattr(module, "cls_token") for module in embeddings),
        shape=shape,
        structured=structured,
        features_block=_features_block(entry.config),
        tower_blocks=blocks,
        unserved={} if blocks else {Need.TOWER_GROUPS: _UNMERGED},
        projector=submodule(entry, "multi_modal_projector", type(entry).__name__),
    )


def element_size(model: nn.Module) -> int:
    """Bytes of one number of the model's language model, which its cache will have too."""
    return next(submodule(entry_of(model), "language_model", type(model).__name__).parameters()).element_size()


def model_shape(config: Any, vision: VisionShape, name: str, bytes_per_element: int | None) -> ModelShape:
    """Numbers of the text config, with the tower's; caches counted in the config's dtype unless told otherwise."""
    return decoder_shape(
        config, config.text_config, name=name, bytes_per_element=bytes_per_element, dtype=torch.float16, vision=vision
    )


def tower_of(config: Any, tiling: Tiling) -> VisionShape:
    """The numbers of a model's tower, for an image of nominal size."""
    vision = config.vision_config
    layers, inner = vision.num_hidden_layers, vision.intermediate_size
    blocks = layers + 1 + _features_block(config)
    return VisionShape(
        layers, vision.hidden_size, inner, tiling=tiling, cls=cls_of(vision), feature_blocks=blocks
    ).for_image(*NOMINAL_SIZE)


def side_of(vision: Any) -> int:
    """Patches along each side of a picture of the tower's own size."""
    return vision.image_size // vision.patch_size


def cls_of(vision: Any) -> int:
    """Tokens of the tower beyond the patches, from its config alone."""
    return 0 if "siglip" in vision.model_type else 1


def vision_of(layout: Layout) -> VisionShape:
    """The tower's numbers.

    Raises:
        AdapterError: when there are none.
    """
    if layout.shape.vision is None:
        raise AdapterError(complaint("a LLaVA", "have a vision config", None, "load a complete model"))
    return layout.shape.vision


def _features_block(config: Any) -> int:
    """The vision block whose output becomes the features, from the end; the deepest, where several do."""
    given: Any = config.vision_feature_layer
    states = config.vision_config.num_hidden_layers + 1  # what enters the first block is number 0
    layers = given if isinstance(given, (list, tuple)) else [given]
    return max(layer if layer < 0 else layer - states for layer in layers)


def entry_of(model: nn.Module) -> nn.Module:
    """The model without its head."""
    return submodule(model, "model", type(model).__name__) if hasattr(model, "lm_head") else model


_UNMERGED: Final = "tokens merge in towers of CLIP's or SigLIP's make alone, whose features come from one block"


def _plain_blocks(tower: nn.Module) -> tuple[TowerBlock, ...]:
    """Every encoder block, in order; empty where one has other parts than those of CLIP and SigLIP."""
    names = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
    modules = dict(tower.named_modules())
    owners = [name.removesuffix(".self_attn") for name in modules if _is_attention(name)]
    blocks = [(modules[owner], dict(modules[owner].named_children())) for owner in owners]
    if any(parts.keys() != set(names) for _, parts in blocks):
        return ()
    return tuple(TowerBlock(block, *(parts[name] for name in names)) for block, parts in blocks)


def _is_attention(name: str) -> bool:
    return name.endswith("self_attn") and ".layers." in f".{name}"


def _vision_attentions(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The attention module of each encoder block, in order; empty where the tower is of an unknown make."""
    return tuple(module for name, module in tower.named_modules() if _is_attention(name))
