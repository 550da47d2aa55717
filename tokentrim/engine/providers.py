"""What a boundary's site may ask for, each computed when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
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
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream, gather_columns
from tokentrim.errors import UnsupportedError, complaint


def providers(
    decision: Decision,
    hidden: Tensor,
    *,
    context: Context,
    prompt: Prompt,
    stream: Stream,
    embeds: Tensor,
    read: dict[Need, Any],
    shared: bool,
) -> dict[Need, Callable[[], Any]]:
    """How each need is served.

    Args:
        decision: whose site it is.
        hidden: [B, T, D], what enters the layer behind the boundary.
        context: of the engine.
        prompt: that is run.
        stream: its columns as they are now.
        embeds: [B, T, D], what entered the language model.
        read: what was read of the layers beside the boundary.
        shared: whether others see that, too.
    """
    ids = stream.vis_ids.clamp(min=0)
    own = _copied if shared else _itself
    before: dict[Need, Callable[[], Any]] = {need: (lambda n=need: own(read[n])) for need in FROM_LAYERS}

    def vision(need: Need) -> Tensor:
        wanted = decision.part.wants_vision_blocks(context.layout.features_block)
        blocks = [context.layout.vision_block(block) for block in wanted]
        seen = [context.vision.read_of((need, block), prompt.placement, prompt.start.vis_pos) for block in blocks]
        stacked = torch.stack(seen, dim=1)
        stacked = stacked.gather(3, ids[:, None, None].expand(-1, *stacked.shape[1:3], -1))
        return stacked.transpose(2, 3) if need == Need.VISION_KEYS else stacked

    def features() -> Tensor:
        return gather_columns(gather_columns(embeds, prompt.start.vis_pos), ids).detach()

    def tower() -> Tensor:
        if context.layout.projector is None:
            return features()
        seen = context.vision.read_of((Need.VISION_HIDDEN, 0), prompt.placement, prompt.start.vis_pos)
        return seen.gather(2, ids.unsqueeze(1).expand(-1, seen.shape[1], -1)).transpose(1, 2)

    def groups() -> Tensor:
        seen = context.vision.read_of((Need.TOWER_GROUPS, 0), prompt.placement, prompt.start.vis_pos)
        return first_of_groups(seen[:, 0].gather(1, ids), stream.vis_valid)

    def text() -> tuple[Tensor, Tensor]:
        columns, real = prompt.start.text()
        return gather_columns(embeds, columns), real

    def text_hidden() -> tuple[Tensor, Tensor, Tensor]:
        columns, real = stream.text()
        behind = layer_reads.behind(stream, prompt.start, columns, real)
        return gather_columns(hidden, columns).detach(), real, behind

    def text_ids() -> tuple[Tensor, Tensor, Tensor]:
        columns, real = prompt.start.text()
        if prompt.tokens is None:
            raise UnsupportedError(
                complaint("a prompt", "be made of token ids where a strategy reads its text", "embeddings alone",
                          "call the model with input_ids")
            )  # fmt: skip
        behind = real & (columns > prompt.start.last_visual())
        return prompt.tokens.to(columns.device).gather(1, columns), real, behind

    def window() -> tuple[Tensor, Tensor]:
        rows, real = own(read[Need.WINDOW_ROWS])  # as many as the widest part at this boundary wants
        width = decision.part.wants_window()
        return rows[:, :, -width:], real[:, -width:]

    return {
        **before,
        Need.WINDOW_ROWS: window,
        Need.HIDDEN: lambda: gather_columns(hidden, stream.vis_pos).detach(),
        **{need: partial(vision, need) for need in FROM_TOWER},
        Need.FEATURES: features,
        Need.VISION_HIDDEN: tower,
        Need.TOWER_GROUPS: groups,
        Need.TEXT_EMBEDS: text,
        Need.TEXT_IDS: text_ids,
        Need.TEXT_HIDDEN: text_hidden,
        Need.FINAL_NORM: lambda: partial(layer_reads.normed, context.layout),
        Need.GRID: lambda: prompt.grid(ids, stream.vis_valid),
        Need.RANDOM: lambda: None,
        Need.GUIDE: lambda: prompt.guided_at(ids),
        Need.EVIDENCE: lambda: prompt.evidence_at(ids),
    }


def _itself(what: Any) -> Any:
    return what


def projecting(layout: Layout, like: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The model's projector as a function, in dtype and device of ``like``; None where it joins tokens."""
    return None if layout.projector is None else partial(_projected, layout.projector, like)


def _projected(projector: nn.Module, like: Tensor, vectors: Tensor) -> Tensor:
    """Vectors of the vision tower as the language model takes them; the projector may be on a device of its own."""
    home = next((parameter.device for parameter in projector.parameters()), like.device)
    with torch.no_grad():
        return projector(vectors.to(home, like.dtype)).to(like.device)


def _copied(what: Any) -> Any:
    """What was read, as tensors that nobody else sees."""
    return tuple(map(_copied, what)) if isinstance(what, tuple) else what.clone()  # type: ignore[misc]
