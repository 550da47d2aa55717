"""Adapter: tells the engine where things are in one model family. It decides nothing and changes nothing."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokentrim.shape import ModelShape
from tokentrim.sites import Grid


@dataclass(frozen=True)
class Layout:
    """The modules of one model that the engine hooks.

    Attributes:
        entry: module whose forward receives ``input_ids`` and merges visual features into embeddings.
        language_model: module whose forward receives ``inputs_embeds`` and runs the decoder layers.
        layers: decoder layers, in order.
        attentions: the attention module of each decoder layer, in order.
        text_config: config object that ``attentions`` read their attention implementation from.
        rotary: module that maps (hidden states, position ids) to (cos, sin).
        vision_tower: module that encodes images, or None.
        projector: module that maps vision features into the language model, or None.
        vision_attentions: attention module of each vision block, in order.
        vision_config: config object that ``vision_attentions`` read their implementation from, or None.
        has_cls: whether row 0 of the vision tower's attention is a [CLS] token.
        shape: the model's numbers.
    """

    entry: nn.Module
    language_model: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    text_config: Any
    rotary: nn.Module
    vision_tower: nn.Module | None
    projector: nn.Module | None
    vision_attentions: tuple[nn.Module, ...]
    vision_config: Any
    has_cls: bool
    shape: ModelShape


class Adapter(ABC):
    """One model family."""

    name: ClassVar[str] = ""
    model_types: ClassVar[tuple[str, ...]] = ()
    """``config.model_type`` values of this family."""

    @abstractmethod
    def locate(self, model: nn.Module) -> Layout:
        """Find the modules.

        Raises:
            AdapterError: when the model claims this family but its layout has drifted; names what is missing.
        """

    @abstractmethod
    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """The model's numbers from its config alone (no weights)."""

    @abstractmethod
    def visual_mask(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor | None:
        """bool [B, T]: which positions of this forward hold visual tokens; None when the forward carries none.

        Args:
            layout: the located modules.
            arguments: the entry module's forward arguments by name.

        Raises:
            UnsupportedError: when the positions cannot be told from the arguments.
        """

    def features(self, arguments: Mapping[str, Any]) -> list[Tensor] | None:
        """Visual features that the caller encoded beforehand and hands to this forward; None when there are none."""
        return None

    @abstractmethod
    def grid(self, layout: Layout, n_visual: tuple[int, ...], device: Any) -> Grid:
        """Image, frame, row and column of every visual token of each row, in raster order (-1 in padding)."""

    def bind(self, layout: Layout, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The entry forward's arguments by name, however the caller passed them."""
        return bind(layout.entry, args, kwargs)


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``module.forward`` by name; ``**kwargs`` of the forward are flattened in.

    Some model classes pass ``input_ids`` and friends to their inner model by position, others by keyword.
    """
    if not args:
        return dict(kwargs)
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}
