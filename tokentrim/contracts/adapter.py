"""Adapter: tells the engine where things are in one model family. It decides nothing and changes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokentrim.contracts.sites import Need
from tokentrim.counting.shape import ModelShape, VisionShape
from tokentrim.errors import AdapterError, UnsupportedError, complaint

Modality = Literal["image", "video"]
MODALITIES: tuple[Modality, ...] = ("image", "video")


@dataclass(frozen=True)
class TowerBlock:
    """A vision block that computes ``x = x + attention(norm1(x)); x + mlp(norm2(x))``."""

    module: nn.Module
    norm1: nn.Module
    attention: nn.Module
    norm2: nn.Module
    mlp: nn.Module


@dataclass(frozen=True)
class Layout:
    """The modules of one model that the engine hooks.

    Attributes:
        entry: module whose forward receives ``input_ids`` and merges visual features into embeddings. Its methods
            ``get_image_features`` and ``get_video_features`` encode pictures.
        language_model: module whose forward receives ``inputs_embeds`` and runs the decoder layers.
        layers: decoder layers, in order.
        attentions: the attention module of each decoder layer, in order.
        text_config: config object that ``attentions`` read their attention implementation from.
        rotary: module that maps (hidden states, position ids) to (cos, sin).
        vision_attentions: attention module of each vision block, in order.
        vision_config: config object that ``vision_attentions`` read their implementation from, or None.
        has_cls: whether row 0 of the vision tower's attention is a [CLS] token.
        shape: the model's numbers.
        full_blocks: vision blocks whose attention sees the whole picture; None = all of them.
        features_block: vision block whose output becomes the features, counted from the end (-1 = the last).
        structured: whether some placeholders are structure (line ends and the like), which is never pruned.
        mrope: whether position ids have one row per axis (time, height, width).
        projector: maps what the tower made of a token to the language model's width, token by token; None where it
            joins several, or is not known.
        tower_blocks: every vision block, in order, where they are of that plain make and one visual token is made of
            one patch; empty elsewhere.
        unserved: what strategies may not ask for on this model, with the reason of each.
        packed: whether the tower attends to all images of a call in one row, under a mask that keeps them apart.
        rotary_kinds: the kind of position embeddings of each decoder layer, which ``rotary`` takes as a third argument;
            empty where all layers have the same.
        windows: how many tokens each decoder layer's attention reaches back, the token itself among them, None where to
            the beginning; empty where nothing is said of windows, and what is longer than one is then refused.
    """

    entry: nn.Module
    language_model: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    text_config: Any
    rotary: nn.Module
    vision_attentions: tuple[nn.Module, ...]
    vision_config: Any
    has_cls: bool
    shape: ModelShape
    full_blocks: tuple[int, ...] | None = None
    features_block: int = -1
    structured: bool = False
    mrope: bool = False
    projector: nn.Module | None = None
    tower_blocks: tuple[TowerBlock, ...] = ()
    unserved: Mapping[Need, str] = field(default_factory=dict[Need, str])
    packed: bool = False
    rotary_kinds: tuple[str, ...] = ()
    windows: tuple[int | None, ...] = ()

    @classmethod
    def around(cls, entry: nn.Module, language_model: nn.Module, **more: Any) -> Layout:
        """A layout whose decoder is of the usual make: ``layers`` with ``self_attn`` each, beside ``rotary_emb``.

        Args:
            entry: as the attribute.
            language_model: as the attribute.
            **more: the attributes that the decoder does not tell.

        Raises:
            AdapterError: when the decoder is of another make.
        """
        layers = tuple(submodule(language_model, "layers", "the language model").children())
        return cls(
            entry=entry,
            language_model=language_model,
            layers=layers,
            attentions=tuple(submodule(layer, "self_attn", "a decoder layer") for layer in layers),
            text_config=language_model.config,
            rotary=submodule(language_model, "rotary_emb", "the language model"),
            **more,
        )

    @property
    def final_norm(self) -> nn.Module | None:
        """What normalises the states behind the last decoder layer: the language model's one part whose weights are
        vectors; None where that is not one part.
        """
        found = [
            part
            for part in self.language_model.children()
            if any(True for _ in part.parameters()) and all(weight.dim() == 1 for weight in part.parameters())
        ]
        return found[0] if len(found) == 1 else None

    def position_embeddings(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of ``position_ids`` for decoder layer number ``layer``; ``hidden`` says device and dtype."""
        return self.rotary(hidden, position_ids, *self.rotary_kinds[layer : layer + 1])

    def rotary_kind(self, layer: int) -> str:
        """Which layers share their position embeddings with ``layer``: those with the same name; empty for all."""
        return self.rotary_kinds[layer] if self.rotary_kinds else ""

    def window_of(self, layer: int, length: int) -> int | None:
        """What decoder layer number ``layer`` reaches back in ``length`` tokens; None where to the beginning."""
        window = self.windows[layer] if self.windows else None
        return window if window is not None and length > window else None

    def vision_block(self, block: int) -> int:
        """The vision block (0-based) that stands in for ``block``: itself, or the nearest earlier (else later) one
        whose attention sees the whole picture.
        """
        block %= len(self.vision_attentions)
        if self.full_blocks is None or block in self.full_blocks:
            return block
        earlier = [full for full in self.full_blocks if full < block]
        return earlier[-1] if earlier else self.full_blocks[0]


@dataclass(frozen=True)
class Encoding:
    """One call of ``get_image_features`` or ``get_video_features``.

    Attributes:
        modality: what was encoded.
        arguments: the call's arguments by name; empty where the features were made before the context was entered.
        lengths: placeholders of each item, as the model hands them out: an image or video, or a tile of one, or all
            that a row of the prompt shows.
        facts: what the adapter noted of the pixels (see :meth:`Adapter.facts`).
    """

    modality: Modality
    arguments: Mapping[str, Any]
    lengths: tuple[int, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def argument(self, *names: str) -> Tensor:
        """The first of the named arguments that was given.

        Raises:
            UnsupportedError: when there is none, because the pictures were encoded outside the context.
        """
        for name in names:
            if self.arguments.get(name) is not None:
                return self.arguments[name]
        raise UnsupportedError(
            complaint(
                f"the {self.modality}s of the prompt",
                f"be encoded inside the context, with {' or '.join(names)}",
                "features made elsewhere",
                "pass the processor's output to generate() or to the model, and no mm_encoder_outputs",
            )
        )


PLACE = ("frame", "plane", "tile", "row", "col", "rows", "cols")
"""What is known of where a visual token lies in its picture, by its names in :class:`Places` and in a grid."""


@dataclass(frozen=True)
class Places:
    """Where every placeholder of one image or video lies; int64 [n] on the host (see :class:`tokentrim.Grid`).

    ``structure`` marks the placeholders that are not visual tokens (line ends): bool [n], or None where none is.
    """

    frame: Tensor
    plane: Tensor
    tile: Tensor
    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor
    structure: Tensor | None = None

    @classmethod
    def raster(cls, rows: int, cols: int, *, frames: int = 1, plane: int = 0) -> Places:
        """One plane per frame in raster order, frame after frame."""
        n = frames * rows * cols
        ids = torch.arange(n)
        inside = ids % max(rows * cols, 1)
        return cls(
            frame=ids // max(rows * cols, 1),
            plane=torch.full((n,), plane),
            tile=torch.zeros(n, dtype=torch.long),
            row=inside // max(cols, 1),
            col=inside % max(cols, 1),
            rows=torch.full((n,), rows),
            cols=torch.full((n,), cols),
        )

    @classmethod
    def nowhere(cls, n: int, *, structure: bool) -> Places:
        """``n`` placeholders without a place in any grid: structure, or a [CLS] token among the features."""
        gone = torch.full((n,), -1)
        return cls(gone, gone, gone, gone, gone, gone, gone, torch.full((n,), structure))

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Parts one after another."""
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in PLACE}
        marks = [
            torch.zeros(len(part.row), dtype=torch.bool) if part.structure is None else part.structure for part in parts
        ]
        return cls(**whole, structure=torch.cat(marks))


class Adapter(ABC):
    """One model family."""

    name: ClassVar[str] = ""
    model_types: ClassVar[tuple[str, ...]] = ()
    """``config.model_type`` values of this family."""
    needs_proof: ClassVar[bool] = False
    """Whether a model must pass the self-test before it is trimmed, because the adapter assumes what it cannot know."""
    reads_prompts: ClassVar[bool] = False
    """Whether :meth:`pictures` reads the prompts, which costs reads of the device; else it is given none."""
    decoders: ClassVar[tuple[str, ...]] = ()
    """Families of transformers whose decoders this adapter was made for, such as ``llama``: a model with any other
    decoder, or with decoder layers of somebody's own code, must pass the self-test too. Empty: it trusts them all."""

    @abstractmethod
    def locate(self, model: nn.Module) -> Layout:
        """Find the modules.

        Raises:
            AdapterError: when the model claims this family but its layout has drifted; names what is missing.
        """

    @abstractmethod
    def shape(self, config: Any, *, name: str = "", bytes_per_element: int | None = None) -> ModelShape:
        """The model's numbers from its config alone (no weights)."""

    def preprocessed(self, shape: ModelShape, settings: Mapping[str, Any]) -> ModelShape:
        """``shape`` where the settings of the image processor (``preprocessor_config.json``) say more of an image's
        size than the config does, such as limits of its area; by default they do not.
        """
        return shape

    @abstractmethod
    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        """Where the placeholders of image or video number ``item`` of an encoding lie.

        Raises:
            UnsupportedError: when that needs arguments of the encoding which are not known.
        """

    def pictures(self, layout: Layout, encoding: Encoding, prompts: Sequence[Tensor]) -> list[Places]:
        """Places of all placeholders of an encoding, in order, one entry per image or video of the prompts.

        By default, every item of the encoding is one. Families that encode tiles on their own, and tell only in the
        prompt's text which of them are one image, say otherwise.

        Args:
            layout: the located modules.
            encoding: what was encoded.
            prompts: int64 [T] on the host, the tokens of each row that the encoding serves; none without
                ``reads_prompts``.

        Raises:
            UnsupportedError: when that needs what is not known of the encoding.
        """
        return [self.places(layout, encoding, item) for item in range(len(encoding.lengths))]

    def facts(self, layout: Layout, encoding: Encoding) -> Mapping[str, Any]:
        """What :meth:`pictures` needs to know of the pixels, small: it is kept for as long as the prompt lives, while
        pixels are not. Nothing, by default.
        """
        return {}

    def modalities(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor:
        """uint8 [B, T]: 0 for text, 1 for a placeholder of an image, 2 for one of a video.

        Args:
            layout: the located modules.
            arguments: the entry module's forward arguments by name.

        Raises:
            UnsupportedError: when the positions cannot be told from the arguments.
        """
        ids: Tensor | None = arguments.get("input_ids")
        if ids is None:
            raise UnsupportedError(
                complaint("a trimmed model", "be called with input_ids, which tell where the images are",
                          "inputs_embeds", "pass input_ids and pixel_values")
            )  # fmt: skip
        config: Any = layout.entry.config
        found = (ids == config.image_token_id).to(torch.uint8)
        video = getattr(config, "video_token_id", None)
        return found if video is None else found + 2 * (ids == video).to(torch.uint8)

    def mutual(self, layout: Layout, arguments: Mapping[str, Any]) -> Tensor | None:
        """int64 [B, T]: a number for each run of tokens that see each other in both directions in a prompt, -1 at
        those that see what is before them alone; None, by default, where all do.

        Args:
            layout: the located modules.
            arguments: the entry module's forward arguments by name.
        """
        return None

    def fixed_length(self, layout: Layout, modality: Modality) -> int | None:
        """Placeholders of every image (video), where all have the same number; None where sizes differ."""
        return None

    def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
        """Pixel values of one image or video, without padding; their bits seed the sample's noise."""
        return encoding.argument("pixel_values", "pixel_values_videos")[item]

    def arrange(self, layout: Layout, encoding: Encoding, rows: Sequence[Tensor]) -> Tensor:
        """What was read in the vision tower, laid out like the placeholders: float [H, sum(encoding.lengths)].

        Args:
            layout: the located modules.
            encoding: what was encoded.
            rows: numbers of every token of the tower, such as the attention that it received in H heads: one float
                [pieces, H, tokens] per attention call of a block, in call order, [CLS] included where the tower has
                one; or one per call of the projector, of the tokens that enter it.
        """
        return torch.cat([piece.permute(1, 0, 2).flatten(1) for piece in rows], dim=1)

    def example_config(self, model_type: str) -> Any | None:
        """A configuration of a family in ``model_types``, of any size; the contract suite makes a small copy of it.

        By default the one that transformers' configuration class makes of no arguments; None where transformers does
        not know the family, and then only models that are handed to the suite are tested.
        """
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # only tests need it

        return CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else None

    def take_deepstack(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
        """The language model's arguments without its features for deeper layers, and these features.

        Returns:
            The arguments, and one [visual tokens of all rows, D] per layer 0, 1, ...: what is added to the visual
            tokens behind that layer. An empty list where the family has none, or not under the usual name.
        """
        features: Sequence[Tensor] | None = arguments.get("deepstack_visual_embeds")
        if not features:
            return arguments, []
        return {**arguments, "deepstack_visual_embeds": None, "visual_pos_masks": None}, list(features)


def decoder_shape(
    config: Any,
    text: Any,
    *,
    name: str,
    bytes_per_element: int | None,
    dtype: torch.dtype,
    vision: VisionShape | None = None,
    width: int | None = None,
) -> ModelShape:
    """Numbers of a decoder of Llama's make from its config.

    Args:
        config: of the whole model.
        text: of its decoder.
        name: what to call it in reports.
        bytes_per_element: of a cached number; None = as in the configs' dtype.
        dtype: of caches where neither config says one.
        vision: the tower, where it is known.
        width: feed-forward width that a token runs through; None = ``text.intermediate_size``.
    """
    heads = text.num_attention_heads
    if bytes_per_element is None:
        said: Any = getattr(config, "dtype", None) or getattr(text, "dtype", None) or dtype
        cached: torch.dtype = getattr(torch, said) if isinstance(said, str) else said
        bytes_per_element = cached.itemsize
    return ModelShape(
        n_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        n_heads=heads,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate_size=text.intermediate_size if width is None else width,
        vocab_size=text.vocab_size,
        bytes_per_element=bytes_per_element,
        ffn_matrices=3,
        vision=vision,
        name=name,
    )


def submodule(module: nn.Module, name: str, whose: str) -> Any:
    """A submodule by name.

    Raises:
        AdapterError: when ``whose`` layout has drifted, and it is not there.
    """
    found = getattr(module, name, None)
    if found is None:
        raise AdapterError(
            complaint(f"{whose} ({type(module).__name__})", f"have a module {name!r}",
                      sorted(name for name, _ in module.named_children()),
                      "its layout has drifted from the one this adapter knows; please report the version")
        )  # fmt: skip
    return found
