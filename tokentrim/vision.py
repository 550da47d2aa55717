"""What the engine reads off the vision tower: attention rows, and a content key of every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim import attention
from tokentrim.adapter import Layout
from tokentrim.clock import Clock
from tokentrim.errors import EngineError, complaint
from tokentrim.randomness import content_key, mix, pixel_key
from tokentrim.rows import attention_rows

_BLOCK = 128


@dataclass
class VisionCapture:
    """The latest encoding of images: per block its rows, per image its key, and the features they became.

    Attributes:
        layout: the located modules.
        blocks: vision blocks (0-based, resolved) whose rows are wanted.
        clock: receives the tower's time under ``vision`` and the rows' under ``selection``.
        rows: block -> float [images, H, patches].
        keys: int64 [images], or None before the first encoding.
        features: storage address of the projected features, by which a later forward recognises them.
        n_tokens: visual tokens per image, as the projector put them out.
    """

    layout: Layout
    blocks: frozenset[int]
    clock: Clock
    wants_keys: bool
    rows: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    keys: Tensor | None = None
    features: int | None = None
    n_tokens: int = 0
    _mark: Any = None
    _before: str | None = None

    def hook(self) -> list[Callable[[], None]]:
        """Install; returns the undo functions."""
        tower, projector = self.layout.vision_tower, self.layout.projector
        if tower is None:
            return []
        handles = [
            tower.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.register_forward_hook(self._leave, always_call=True),
        ]
        if projector is not None:
            handles.append(projector.register_forward_hook(self._projected))
        for index, module in enumerate(self.layout.vision_attentions):
            if index in self.blocks:
                attention.observe(module, self._observer(index))
        undo: list[Callable[[], None]] = [handle.remove for handle in handles]
        undo += [lambda m=module: attention.ignore(m) for module in self.layout.vision_attentions]
        return [*undo, self._restore]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs.get("pixel_values")
        self.rows, self.keys, self.features = {}, None, None
        if isinstance(pixels, Tensor):
            self._mark = self.clock.start(pixels.device)
            if self.wants_keys:
                self.keys = pixel_key(pixels)
        if self.blocks:
            config = self.layout.vision_config
            self._before = attention.implementation_of(config)
            attention.switch(config, attention.wrapped_name(self._before))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._restore()
        if self._mark is not None:
            self.clock.stop("vision", self._mark)
            self._mark = None

    def _restore(self) -> None:
        if self._before is not None:
            attention.switch(self.layout.vision_config, self._before)
            self._before = None

    def _projected(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.features, self.n_tokens = output.untyped_storage().data_ptr(), output.shape[-2]

    def _observer(self, index: int) -> attention.Observer:
        def look(
            kernel: attention.Kernel,
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Any,
            options: dict[str, Any],
        ) -> tuple[Tensor, Tensor | None]:
            with self.clock.timed("selection", query.device):
                scaling = options.get("scaling") or query.shape[-1] ** -0.5
                self.rows[index] = self._read(query, key, float(scaling))
            return kernel(module, query, key, value, mask, **options)

        return look

    def _read(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        if self.layout.has_cls:
            return attention_rows(query[:, :, :1], key, scaling, None)[:, :, 0]
        total = torch.zeros(query.shape[0], query.shape[1], key.shape[2], device=query.device)
        for start in range(0, query.shape[2], _BLOCK):
            total += attention_rows(query[:, :, start : start + _BLOCK], key, scaling, None).sum(2)
        return total / query.shape[2]

    def is_of(self, features: list[Tensor] | None) -> bool:
        """Whether ``features`` (handed to a forward from outside) are the ones encoded last."""
        if not features or self.features is None:
            return features is None and self.features is not None
        return features[0].untyped_storage().data_ptr() == self.features

    def _starts(self, n_visual: tuple[int, ...], total: int) -> list[int]:
        """First captured token of each row. Rows may be repeated (beams): equal neighbours share their images."""
        wanted = sum(n_visual)
        if total == 0 or wanted % total:
            raise EngineError(
                complaint(
                    "visual tokens of the prompt",
                    f"be the {total} that the vision tower just encoded (or a multiple, with beams)",
                    wanted,
                    "encode the images inside the context",
                )
            )
        repeats, starts, position = wanted // total, list[int](), 0
        for first in range(0, len(n_visual), repeats):
            starts += [position] * repeats
            position += n_visual[first]
        return starts

    def rows_of(self, block: int, n_visual: tuple[int, ...]) -> Tensor:
        """float [B, H, N]: the captured rows of ``block``, laid out like the prompt's visual tokens."""
        if block not in self.rows:
            raise EngineError(
                complaint(
                    "vision-tower attention",
                    "have been seen while the images were encoded",
                    "none captured",
                    "pass pixel_values inside the context instead of features encoded before it",
                )
            )
        rows = self.rows[block]
        # [CLS] itself is not a visual token where the features leave it out.
        rows = rows[..., rows.shape[-1] - self.n_tokens :]
        images, heads, patches = rows.shape
        flat = rows.permute(1, 0, 2).reshape(heads, images * patches)
        starts = torch.tensor(self._starts(n_visual, images * patches), device=rows.device).unsqueeze(1)
        width = max(n_visual, default=0)
        index = (starts + torch.arange(width, device=rows.device)).clamp(max=images * patches - 1)
        return flat[:, index].permute(1, 0, 2)

    def sample_keys(self, n_visual: tuple[int, ...], input_ids: Tensor | None, valid: Tensor | None) -> Tensor:
        """int64 [B]: a key of each row's content: its images, or its text where the images were not seen."""
        if self.keys is not None and self.n_tokens and sum(n_visual):
            starts = self._starts(n_visual, len(self.keys) * self.n_tokens)
            result: list[Tensor] = []
            for start, n in zip(starts, n_visual, strict=True):
                first = start // self.n_tokens
                images = self.keys[first : first + n // self.n_tokens]
                places = torch.arange(1, len(images) + 1, device=images.device)
                result.append((mix(images) * places).sum() if len(images) else images.new_zeros(()))
            return torch.stack(result)
        if input_ids is None:
            return torch.zeros(len(n_visual), dtype=torch.int64)
        tokens = input_ids.long() + 1
        return content_key(tokens if valid is None else tokens * valid)
