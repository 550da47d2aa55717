"""What a boundary's site may ask for, each computed when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.fits import Decision
from tokentrim.contracts.sites import FROM_LAYERS, FROM_TOWER, Need
from tokentrim.engine import layer_reads
from tokentrim.engine.abilities.merging import first_of_groups
from tokentrim.engine.context import Context
from tokentrim.engine.seams.private import device_of
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream, gather_columns, moved
from tokentrim.errors import EngineError, UnsupportedError, complaint


@dataclass(frozen=True)
class Providers:
    """How each need of one site is served.

    Attributes:
        decision: whose site it is.
        hidden: [B, T, D], what enters the layer behind the boundary.
        context: of the engine.
        prompt: that is run.
        stream: its columns as they are now.
        embeds: [B, T, D], what entered the language model.
        read: what was read of the layers beside the boundary.
        shared: whether others see that, too.
    """

    decision: Decision
    hidden: Tensor
    context: Context
    prompt: Prompt
    stream: Stream
    embeds: Tensor
    read: dict[Need, Any]
    shared: bool

    def by_need(self) -> dict[Need, Callable[[], Any]]:
        """What computes each."""
        prompt, ids = self.prompt, self._ids
        return {
            **{need: partial(self._of_layers, need) for need in FROM_LAYERS},
            Need.WINDOW_ROWS: self._window,
            Need.HIDDEN: lambda: gather_columns(self.hidden, self.stream.vis_pos).detach(),
            **{need: partial(self._of_tower, need) for need in FROM_TOWER},
            Need.FEATURES: self._features,
            Need.VISION_HIDDEN: self._vision_hidden,
            Need.TOWER_GROUPS: self._tower_groups,
            Need.TEXT_EMBEDS: self._text_embeds,
            Need.TEXT_IDS: self._text_ids,
            Need.TEXT: lambda: self._text,
            Need.TEXT_HIDDEN: self._text_hidden,
            Need.FINAL_NORM: lambda: partial(layer_reads.normed, self.context.layout),
            Need.GRID: lambda: prompt.grid(ids, self.stream.vis_valid),
            Need.RANDOM: lambda: None,
            Need.GUIDE: lambda: prompt.guided_at(ids),
            Need.EVIDENCE: lambda: prompt.evidence_at(ids),
        }

    @property
    def _ids(self) -> Tensor:
        return self.stream.vis_ids.clamp(min=0)

    @property
    def _start(self) -> Stream:
        """The whole prompt's columns, where the layer behind the boundary runs."""
        return self.prompt.start.on(self.stream.device)

    def _of_layers(self, need: Need) -> Any:
        return _copied(self.read[need]) if self.shared else self.read[need]

    def _window(self) -> tuple[Tensor, Tensor]:
        rows, real = self._of_layers(Need.WINDOW_ROWS)  # as many as the widest part at this boundary wants
        width = self.decision.part.wants_window()
        return rows[:, :, -width:], real[:, -width:]

    def _of_tower(self, need: Need) -> Tensor:
        layout, wanted = self.context.layout, self.decision.part.vision_blocks_of
        chosen = wanted(layout.features_block, len(layout.vision_attentions))
        blocks = [layout.vision_block(block) for block in chosen]
        stacked = torch.stack([self._read_in_tower(need, block) for block in blocks], dim=1)
        stacked = stacked.gather(3, self._ids[:, None, None].expand(-1, *stacked.shape[1:3], -1))
        return stacked.transpose(2, 3) if need == Need.VISION_KEYS else stacked

    def _read_in_tower(self, need: Need, block: int) -> Tensor:
        return self.context.vision.read_of((need, block), self.prompt.placement, self._start.vis_pos)

    def _features(self) -> Tensor:
        start = self.prompt.start.on(self.embeds.device)
        visual = gather_columns(self.embeds, start.vis_pos).to(self.stream.device)
        return gather_columns(visual, self._ids).detach()

    def _vision_hidden(self) -> Tensor:
        if self.context.layout.projector is None:
            return self._features()
        seen = self._read_in_tower(Need.VISION_HIDDEN, 0)
        return seen.gather(2, self._ids.unsqueeze(1).expand(-1, seen.shape[1], -1)).transpose(1, 2)

    def _tower_groups(self) -> Tensor:
        seen = self._read_in_tower(Need.TOWER_GROUPS, 0)
        return first_of_groups(seen[:, 0].gather(1, self._ids), self.stream.vis_valid)

    def _text_embeds(self) -> tuple[Tensor, Tensor]:
        columns, real = self.prompt.start.on(self.embeds.device).text()
        return moved((gather_columns(self.embeds, columns), real), self.stream.device)

    def _text_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        columns, real = self.stream.text()
        behind = layer_reads.behind(self.stream, self._start, columns, real)
        return gather_columns(self.hidden, columns).detach(), real, behind

    def _text_ids(self) -> tuple[Tensor, Tensor, Tensor]:
        columns, real = self._start.text()
        if self.prompt.tokens is None:
            raise UnsupportedError(
                complaint("a prompt", "be made of token ids where a strategy reads its text", "embeddings alone",
                          "call the model with input_ids")
            )  # fmt: skip
        behind = real & (columns > self._start.last_visual())
        return self.prompt.tokens.to(columns.device).gather(1, columns), real, behind

    def _text(self, chosen: Tensor) -> tuple[tuple[str, ...], ...]:
        words, (ids, real, _) = self.context.words, self._text_ids()
        if words is None:
            raise EngineError(complaint("the tokenizer", "be there where text is read", None, "please report this"))
        rows: list[list[int]] = ids.masked_fill(~(chosen & real), -1).tolist()
        return tuple(words.pieces([token for token in row if token >= 0]) for row in rows)


def projecting(layout: Layout, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The model's projector as a function whose results have this device and dtype; None where it joins tokens."""
    return None if layout.projector is None else partial(_projected, layout.projector, device, dtype)


def _projected(projector: nn.Module, device: torch.device, dtype: torch.dtype, vectors: Tensor) -> Tensor:
    """Vectors of the vision tower as the language model takes them; the projector may have a device and a dtype of its
    own.
    """
    weights = (weight.dtype for weight in projector.parameters() if weight.is_floating_point())
    with torch.no_grad():
        return projector(vectors.to(device_of(projector), next(weights, dtype))).to(device, dtype)


def _copied(what: Any) -> Any:
    """What was read, as tensors that nobody else sees."""
    return tuple(map(_copied, what)) if isinstance(what, tuple) else what.clone()  # type: ignore[misc]
